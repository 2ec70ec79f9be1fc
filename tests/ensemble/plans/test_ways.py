"""Which kernels a call gets, and which sizes a plan takes."""

from __future__ import annotations

import pytest

from ensemble.engines.plans.ways import Profile, Way, way_of

DECODER = Profile(
    {"fpn_2": (1, 8, 4, 4), "image_index": (1,), "prompt_mask": (1, 32)},
    {"fpn_2": (8, 8, 4, 4), "image_index": (32,), "prompt_mask": (32, 32)},
    {"fpn_2": (8, 8, 4, 4), "image_index": (32,), "prompt_mask": (32, 41)},
)
MASKS = Profile({"fpn_0": (1, 8, 4, 4)}, {"fpn_0": (8, 8, 4, 4)}, {"fpn_0": (8, 8, 4, 4)})


def decoder(images, pairs, tokens):
    return {"fpn_2": (images, 8, 4, 4), "image_index": (pairs,), "prompt_mask": (pairs, tokens)}


@pytest.mark.parametrize(
    ("shapes", "profile", "way"),
    [
        pytest.param(decoder(1, 1, 32), DECODER, Way(exact=True, graph=True), id="the smallest"),
        pytest.param(decoder(1, 4, 32), DECODER, Way(exact=False, graph=True), id="one frame, four classes"),
        pytest.param(decoder(8, 32, 41), DECODER, Way(exact=True, graph=False), id="the largest"),
        pytest.param(decoder(3, 7, 33), DECODER, Way(exact=False, graph=False), id="as it comes"),
        pytest.param({"fpn_0": (1, 8, 4, 4)}, MASKS, Way(exact=True, graph=False), id="masks"),
    ],
)
def test_the_way_of_a_call(shapes, profile, way):
    assert way_of(shapes, profile) == way


def test_equal_sizes_are_finished_once():
    assert len(DECODER.all) == 3
    assert len(MASKS.all) == 2


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        pytest.param(decoder(8, 32, 41), None, id="the largest"),
        pytest.param(decoder(8, 32, 42), "expected prompt_mask of [1, 32] to [32, 41], got [32, 42]", id="a token"),
        pytest.param(decoder(0, 1, 32), "got [0, 8, 4, 4]", id="no frame"),
    ],
)
def test_sizes_outside_the_profile_are_named(shapes, why):
    found = DECODER.why_outside(shapes)
    assert (found is None) == (why is None)
    assert why is None or why in found
