"""The tracker's truths for other machines: true of the sub-models in both precisions, and of no break in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ensemble.gate import truths
from ensemble.gate.compare import GateError
from ensemble.gate.limits import LIMITS, limits_of
from ensemble.gate.measure import failures, measure
from ensemble.gate.tracker import stored_calls, tokens
from export.gate.tracker.truths import tracker_arrays


@pytest.fixture(scope="module")
@torch.no_grad()
def held(case, variant):
    """Truths at 140, as they are read where a tracker is served."""
    own, of = case(140), variant(140)
    hidden = own.truths[0].inputs["tracker_neck"]["hidden"]
    arrays = tracker_arrays(own.tracker, hidden, of)
    return truths.Truths(of, "these weights", {**arrays, "images": np.int32(len(hidden))})


@pytest.fixture(scope="module")
def modules(held, case, runs):
    """The four in fp32, by part."""
    return runs(case(140).tracker, held.variant)


def sub_model(run):
    """A module's function as an engine's."""
    return lambda feed, outputs: {name: run(feed)[name] for name in outputs}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_sub_models_agree_with_them(precision, held, case, runs, variant):
    of = variant(140, precision)
    for part, run in runs(case(140).tracker, of).items():
        model, limits = getattr(of, part), limits_of(of, part)
        checks = measure(sub_model(run), part, model.name, replace(held, variant=of), limits)
        assert {check.output for check in checks} == {tensor.name for tensor in model.outputs}
        assert failures(checks, limits) == []


def test_they_have_one_to_eight_objects_with_one_to_ten_maps_of_two_frames(held):
    calls = list(stored_calls("tracker_step", held))
    assert [call.inputs["memory"].shape[:2] for call in calls] == [(1, 1), (3, 4), (8, 10)]
    assert {int(index) for call in calls for index in call.inputs["image_index"]} == {0, 1}
    assert sum((call.decided & ~call.absent).sum() for call in calls) > 3


def test_tokens_in_one_place_of_a_frame_are_not_those_of_another():
    small = np.random.default_rng(0).standard_normal((16, 16, 4)).astype(np.float16)
    np.testing.assert_array_equal(tokens(small[:10, :10], 10)[0], 0.625 * small[:10, :10].reshape(100, 4).astype(float))
    rows = tokens(small, 32).reshape(-1, 4)
    assert len(np.unique(rows, axis=0)) == 32 * 32


def shifted(feed):
    age = feed["memory_age"]
    return feed | {"memory_age": np.where(age > 0, age % 6 + 1, age).astype(np.int32)}


def other_frame(feed):
    return feed | {"image_index": 1 - feed["image_index"]}


def mirrored(feed):
    return feed | {"hidden": feed["hidden"][:, ::-1].copy()}


def nothing_suppressed(feed):
    return feed | {"keep": np.full_like(feed["keep"], 255)}


@pytest.mark.parametrize(
    ("part", "breaking"),
    [
        ("tracker_neck", mirrored),
        ("tracker_step", shifted),
        ("tracker_step", other_frame),
        ("memory_encoder", nothing_suppressed),
        ("tracker_seed", other_frame),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_break_is_caught_with_the_limits_of_half_precision(part, breaking, held, modules):
    limits = LIMITS["fp16"]
    broken = sub_model(lambda feed: modules[part](breaking(feed)))
    assert failures(measure(broken, part, "it", held, limits), limits)


def test_an_answer_of_another_shape_is_named(held, modules):
    cut = sub_model(lambda feed: {n: array[:, :-1] for n, array in modules["memory_encoder"](feed).items()})
    with pytest.raises(GateError, match=r"expected memory of shape \(1, 100, 64\), got \(1, 99, 64\); export again"):
        measure(cut, "memory_encoder", "it", held, limits_of(held.variant, "memory_encoder"))


def test_a_tracker_that_finds_nothing_has_no_truths(case, variant):
    own = case(140)
    bias = own.tracker.model.mask_decoder.pred_obj_score_head.proj_out.bias
    before = bias.detach().clone()
    try:
        bias.data -= 1000
        with pytest.raises(GateError, match=r"no object is in its frame .* use other frames"):
            tracker_arrays(own.tracker, own.truths[0].inputs["tracker_neck"]["hidden"], variant(140))
    finally:
        bias.data.copy_(before)
