"""Which weights can be in 16 bits, and why the others cannot."""

from __future__ import annotations

import pytest
import torch

from export.slim.half import DTYPES, REASONS, halve

MATRIX = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 8
LARGE = MATRIX.clone()
LARGE[0, 0] = 1e5
SMALL = MATRIX * 1e-7
FEW_SMALL = MATRIX.clone()
FEW_SMALL[0, :8] = 1e-9
LAYER = "detr_decoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "fp16", "bf16"),
    [
        pytest.param(LAYER, MATRIX, None, None, id="a matrix"),
        pytest.param(LAYER, LARGE, "overflow", None, id="a value beyond fp16's 65504"),
        pytest.param(LAYER, SMALL, "underflow", None, id="values below fp16's normal numbers"),
        pytest.param(LAYER, FEW_SMALL, None, None, id="a few tiny values, which do not matter"),
        pytest.param("detr_decoder.output_layer_norm.weight", MATRIX[0], "vector", "vector", id="a norm"),
        pytest.param("detr_decoder.reference_points.weight", MATRIX, "boxes", "boxes", id="what boxes start from"),
        pytest.param("detr_decoder.box_head.layer1.weight", MATRIX, "boxes", "boxes", id="what moves boxes"),
        pytest.param("detr_decoder.query_embed.weight", torch.zeros(4, 4), None, None, id="zeros"),
    ],
)
def test_what_stays_in_fp32_and_why(name, tensor, fp16, bf16):
    for dtype, reason in (("fp16", fp16), ("bf16", bf16)):
        halved, said = halve({name: tensor}, dtype)
        assert said.kept == ({reason: [name]} if reason else {})
        assert halved[name].dtype == (torch.float32 if reason else DTYPES[dtype])
        assert set(said.kept) <= REASONS.keys()
        if reason:
            assert torch.equal(halved[name], tensor)


def test_what_rounding_costs_is_counted():
    _, said = halve({"a": FEW_SMALL, "b": MATRIX}, "fp16")
    assert said.ranges["a"].zeroed == 8
    assert said.ranges["b"].zeroed == 0
    assert said.ranges["b"].largest == pytest.approx(float(MATRIX.abs().max()))
    assert 1e-4 < said.ranges["b"].error < 2**-11
    told = said.as_dict()
    assert told["values_that_became_zero"] == 8
    assert told["tensors"] == 2
    assert list(told["worst"]) == ["a", "b"] or list(told["worst"]) == ["b", "a"]


def test_counters_stay_as_they_are():
    halved, said = halve({"num_batches_tracked": torch.tensor(7)}, "fp16")
    assert halved["num_batches_tracked"].item() == 7
    assert halved["num_batches_tracked"].dtype == torch.int64
    assert said.kept == {}


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype must be one of fp16, bf16, got 'int8'"):
        halve({}, "int8")
