"""GPU memory of plans in the engine model: scratch is reserved whatever is asked, and shared by all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ensemble.server import repository as placement
from ensemble.server.memory import PLANS_PROCESS, engine_model_need, footprint_of, least_engine_model_need
from ensemble.server.plans_check import scratch_mb
from ensemble.server.start_check import Host, check_memory
from ensemble.spec import MB, Tracker, Variant
from tests.ensemble.server.repositories import write

ENGINE = "tensorrt_rtx"


def test_scratch_is_that_of_the_plan_that_needs_most():
    low, high = Variant(560), Variant(1008)
    both = engine_model_need([low, high], 3_000, ENGINE)
    assert both.activations == engine_model_need([high], 3_000, ENGINE).activations
    assert engine_model_need([low, high], 3_000, ENGINE, 700).activations == 700


def test_smaller_batches_do_not_make_plans_smaller():
    variant = Variant(672)
    least, full = (need([variant], 1_600, ENGINE) for need in (least_engine_model_need, engine_model_need))
    assert least.activations == full.activations
    assert least.features < full.features
    smaller = engine_model_need([replace(variant, max_batch=1)], 1_600, ENGINE)
    assert smaller.activations < full.activations, "exported for less, they need less"


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        pytest.param([100, 20, 10, 400, 50], 400, id="all noted"),
        pytest.param([100, 20, None, 400, 50], None, id="one did not"),
    ],
)
def test_what_the_builds_noted_is_taken(tmp_path, noted, expected):
    (served,) = placement.read(write(tmp_path, [672], ENGINE, built_for={}))
    for artifact, megabytes in zip(served.artifacts, noted, strict=True):
        build = {} if megabytes is None else {"scratch_mb": megabytes}
        path = artifact.folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "build": build}))
    (served,) = placement.read(tmp_path)
    assert scratch_mb(served.artifacts) == expected


def test_too_little_memory_is_said_with_the_figures_and_where_they_come_from(tmp_path):
    served = placement.read(write(tmp_path, [1008], ENGINE))
    with pytest.raises(placement.ServerError, match="no card has confirmed it") as refused:
        check_memory(served, Host(None, stated_mb=4_000), None)
    text = str(refused.value)
    assert "sam3_r1008: needs " in text
    assert "activations 4,346" in text
    assert "What fits: " in text or "It fits with" in text


def test_plans_are_no_models_of_tritons_own(tmp_path):
    served = placement.read(write(tmp_path, [672], ENGINE))
    placement.check_engines(served)
    with pytest.raises(placement.ServerError, match="leave out --sub-models"):
        placement.check_engines(served, sub_models=True)


def test_plans_have_their_own_footprint_in_one_process():
    assert footprint_of(ENGINE, model_each=False) is PLANS_PROCESS
    assert footprint_of("aoti", model_each=False) is not PLANS_PROCESS
    assert footprint_of("tensorrt", model_each=True) is not PLANS_PROCESS


def test_what_the_tracker_is_given_counts_beside_what_the_detector_is():
    videos = Variant(672, tracker=Tracker())
    trunk, features = 1024, 32 * 4**2 + 64 * 2**2 + 2 * 256  # numbers a patch: what the neck reads, what it makes
    read_and_made = 8 * videos.patches**2 * (trunk + features) * 2 / MB  # of 8 frames, in fp16
    alone = engine_model_need([Variant(672)], 1_600, ENGINE)
    both = engine_model_need([Variant(672)], 1_600, ENGINE, trackers=[videos])
    assert both.features - alone.features == pytest.approx(read_and_made)
