"""Operations and bytes from first principles, held to what was counted in the real modules and to the sizes of real
tensors."""

from __future__ import annotations

import pytest

from ensemble.server.architecture import SAM3, Architecture
from ensemble.server.memory import MB, feature_bytes, score_bytes
from ensemble.spec import Checkpoint, Variant
from export.checkpoint import load
from perf.capacity.model import decoder_flops, mask_head_flops, text_flops, vision_flops


@pytest.mark.parametrize(
    ("resolution", "vision", "pair", "masks"),
    [
        pytest.param(1008, 5611, 420, 143, id="1008: windows fill the frame"),
        pytest.param(840, 4280, 259, 100, id="840: windows are padded"),
        pytest.param(672, 2385, 149, 64, id="672: windows fill the frame"),
        pytest.param(560, 1850, 99, 44, id="560: windows are padded"),
    ],
)
def test_operations_are_those_counted_in_the_modules(resolution, vision, pair, masks):
    """GFLOP a frame and a pair, as a counter of operations saw them in the exported modules."""
    assert vision_flops(resolution) / 1e9 == pytest.approx(vision, rel=0.001)
    assert (decoder_flops(resolution) + mask_head_flops(resolution)) / 1e9 == pytest.approx(pair, rel=0.015)
    assert mask_head_flops(resolution) / 1e9 == pytest.approx(masks, rel=0.01)
    assert text_flops() / 1e9 == pytest.approx(19.4, rel=0.005)


@pytest.mark.parametrize(("resolution", "saved"), [(1008, 0), (840, 372), (672, 0), (560, 165)])
def test_linear_layers_before_the_padding_save_what_padding_costs_them(resolution, saved):
    assert (vision_flops(resolution) - vision_flops(resolution, pad_linears=False)) / 1e9 == pytest.approx(saved, abs=1)


def test_features_are_as_large_as_the_specification_says():
    variant = Variant(672)
    elements = sum(
        tensor.shape(images=8)[0] * tensor.shape()[1] * tensor.shape()[2] * tensor.shape()[3]
        for tensor in variant.vision_encoder.outputs
    )
    assert feature_bytes(672, 8) == 2 * elements


def test_attention_scores_count_only_where_they_are_kept():
    assert score_bytes(672, 8) == 0
    assert score_bytes(840, 8) / MB == pytest.approx(6328, abs=1)
    assert score_bytes(840, 8, fused=True) == 0
    assert score_bytes(672, 1, fused=False) == 2 * 16 * 2304**2 * 2


def test_the_small_checkpoint_has_its_own_sizes(checkpoint):
    source = load(str(checkpoint))
    small = Architecture.of(source.record)
    assert small.fpn == 128
    assert small.patches(252) == 18**2
    assert small.padded(140) == 12**2, "10 patches a side are filled up to two windows of 6"
    assert vision_flops(252, small) < vision_flops(252, SAM3) / 20
    assert small.parameters == pytest.approx(sum(p.numel() for p in source.model.parameters()), abs=5e5)
    assert Architecture.from_dict(small.to_dict()).to_dict() == small.to_dict()


def test_a_resolution_between_two_patches_is_refused():
    with pytest.raises(ValueError, match="multiple of 14, got 1000; nearest: 994, 1008"):
        SAM3.patches(1000)
    assert Checkpoint().patch_size == SAM3.patch
