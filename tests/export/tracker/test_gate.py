"""The tracker's sub-models against transformers' own tracker, and breaks that the gate must see."""

import dataclasses

import numpy as np
import pytest

from ensemble.gate.limits import TRACKER_RELATIVE
from export.gate.tracker.verify import verify_tracker


@pytest.mark.parametrize("resolution", [140, 210, 252], ids=["even", "odd patches, half bytes of mask", "trained at"])
def test_all_outputs_of_one_to_eight_objects_with_one_to_ten_maps(resolution, case, runs, variant):
    own, of = case(resolution), variant(resolution)
    sizes = [truth.inputs["tracker_step"]["memory"].shape[:2] for truth in own.truths]
    assert sizes == [(1, 1), (3, 4), (8, 10)]
    scores = np.concatenate([truth.outputs["tracker_step"]["track_score"] for truth in own.truths])
    assert {bool(there) for there in scores > 0} == {True, False}

    report = verify_tracker(runs(own.tracker, of), of, own.truths)

    assert report.failures == ()
    assert {f"{check.model}/{check.output}" for check in report.outputs} == {
        f"{model.name}/{tensor.name}" for model in of.tracker_parts for tensor in model.outputs
    }
    assert max(check.relative for check in report.outputs) <= TRACKER_RELATIVE


def test_half_precision(case, runs, variant):
    own, of = case(140), variant(140, "fp16")  # which processors are slow at
    report = verify_tracker(runs(own.tracker, of), of, own.truths)  # all: fewer scores have a cosine of chance
    assert report.failures == ()
    assert min(check.cosine for check in report.outputs) >= 0.999


@pytest.mark.parametrize("form", ["chunked", "fused"])
def test_other_forms_of_attention(form, case, runs, variant, monkeypatch):
    monkeypatch.setattr("export.sub_models.tracker.memory_attention.SCORES", 40_000)  # many chunks at 140 too
    own, of = case(140), variant(140)
    assert verify_tracker(runs(own.tracker, of, form), of, own.truths).failures == ()


def shifted_ages(feed):
    age = feed["memory_age"]
    return feed | {"memory_age": np.where(age > 0, age % 6 + 1, age).astype(np.int32)}


def empty_maps_seen(feed):
    return feed | {"memory_age": np.maximum(feed["memory_age"], 0)}


def other_frame(feed):
    return feed | {"image_index": 1 - feed["image_index"]}


def nothing_suppressed(feed):
    return feed | {"keep": np.full_like(feed["keep"], 255)}


def never_hard(feed):
    return feed | {"hard": np.zeros_like(feed["hard"])}


@pytest.mark.parametrize(
    ("part", "breaking"),
    [
        ("tracker_step", shifted_ages),
        ("tracker_step", empty_maps_seen),
        ("tracker_step", other_frame),
        ("memory_encoder", nothing_suppressed),
        ("memory_encoder", never_hard),
        ("tracker_seed", other_frame),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_break_in_a_call_is_caught_where_it_is(part, breaking, case, runs, variant):
    own, of = case(140), variant(140)
    whole = runs(own.tracker, of)
    broken = whole | {part: lambda feed: whole[part](breaking(feed))}
    failures = verify_tracker(broken, of, own.truths).failures
    assert failures
    assert all(failure.startswith(f"sam3_{part}_r140: ") for failure in failures)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_missing_row_of_the_ages_is_caught(precision, case, runs, variant):
    own, of = case(140), variant(140, precision)
    rows = own.tracker.model.memory_temporal_positional_encoding
    before = rows.detach().clone()
    try:
        rows.data[-1] = 0  # the row of conditioning frames
        broken = runs(own.tracker, of)
    finally:
        rows.data.copy_(before)
    failures = verify_tracker(broken, of, own.truths[:2]).failures  # three objects show it as well as eight
    assert failures
    assert all(failure.startswith("sam3_tracker_step_r140: ") for failure in failures)


def test_masks_that_nobody_compared_fail(case, runs, variant):
    """Where the reference says of every object that it is not there, the gate has seen no mask."""
    own, of = case(140), variant(140)
    gone = [dataclasses.replace(truth, outputs=truth.outputs | {"tracker_step": none(truth)}) for truth in own.truths]
    (failure, *_) = [f for f in verify_tracker(runs(own.tracker, of), of, gone).failures if "no object" in f]
    assert "use other frames, with --frames" in failure


def none(truth):
    outputs = truth.outputs["tracker_step"]
    return outputs | {"track_score": -np.abs(outputs["track_score"])}
