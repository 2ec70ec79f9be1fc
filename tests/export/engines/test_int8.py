"""INT8 of ONNX files: what is rounded, what stays in fp32 because it must, and how near the result is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from ensemble.gate.compare import compare
from ensemble.gate.limits import LIMITS, limits_of, part_precision
from ensemble.spec import Variant
from export.checkpoint import at_size, load
from export.engines.int8 import quantise, rounding_error
from export.engines.onnxruntime import ENGINE, onnx_session
from export.engines.registry import ready
from export.gate.frames import drawn_frames
from export.sub_models.parts import make_part
from tests.export.engines import two_products
from tests.export.engines.two_products import file_of, weights_of


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    return weights_of(np.float32)


def saved(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """x -> x @ even, x @ odd"""
    return file_of(
        path, [helper.make_node("MatMul", ["x", n], [f"y_{n}"], name=f"times_{n}") for n in weights], weights
    )


def x_of(first: float) -> np.ndarray:
    return two_products.x_of(first, np.float32)


def test_products_are_rounded_and_their_results_stay_near(tmp_path, weights):
    path, x = saved(tmp_path / "model.onnx", weights), x_of(1.0)
    before = onnx_session(path)({"x": x})
    told = quantise(path, [{"x": x}])
    assert (told["products"], told["in_fp32"]) == (2, [])
    assert 0.001 < told["largest_error"] < 0.03
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "MatMul"]
    after = onnx_session(path)({"x": x})
    for name, value in before.items():
        error = np.linalg.norm(after[name] - value) / np.linalg.norm(value)
        assert error == pytest.approx(rounding_error(x, weights[name[2:]]), rel=0.05)
        assert error <= told["largest_error"] * 1.05


def test_a_product_that_rounding_spoils_stays_in_fp32(tmp_path, weights):
    """A value that is a thousand times as large as the others takes all 256 steps: where it is multiplied with zero,
    nothing of the others is left, and where it is most of the result, nothing of them is missed."""
    path, x = saved(tmp_path / "model.onnx", weights), x_of(1000.0)
    before = onnx_session(path)({"x": x})
    told = quantise(path, [{"x": x_of(1.0)}, {"x": x}])
    assert told["in_fp32"] == ["times_even"]
    after = onnx_session(path)({"x": x})
    np.testing.assert_array_equal(after["y_even"], before["y_even"])
    assert not np.array_equal(after["y_odd"], before["y_odd"])


def test_a_file_that_int8_does_not_suit_is_refused_and_left_alone(tmp_path, weights):
    path = saved(tmp_path / "model.onnx", weights)
    held = path.read_bytes()
    with pytest.raises(ValueError, match="all 2 have more; this checkpoint does not suit INT8: use --precision fp32"):
        quantise(path, [{"x": x_of(np.nan)}])
    assert path.read_bytes() == held


def test_the_small_vision_encoder_passes_the_gates_limit(checkpoint, tmp_path):
    source, resolution = load(str(checkpoint)), 112
    variant = Variant(resolution, 50, "int8", checkpoint=source.record)
    module = make_part("vision_encoder", at_size(source.model, resolution, 50), ENGINE.style, "fp32")
    pixels = np.stack([frame.pixels for frame in drawn_frames(2, resolution)])
    tool, path = ready("onnxruntime", precision="int8"), tmp_path / "model.onnx"
    told = tool.build(ENGINE.in_int8(module, [{"pixel_values": pixels[:1]}]), variant.vision_encoder, variant, path)
    found, wanted = onnx_session(path)({"pixel_values": pixels[1:]}), module(torch.from_numpy(pixels[1:]))
    assert told["int8"]["products"] == 32
    assert told["int8"]["in_fp32"] == []
    for tensor, value in zip(variant.vision_encoder.outputs, wanted, strict=True):
        cosine, _ = compare(found[tensor.name], value.numpy())
        assert limits_of(variant, "vision_encoder").cosine <= cosine < 0.999999
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 9e6, "12.6 million bytes of weights in fp32 are a quarter of that"


def test_which_sub_models_are_in_int8():
    variant = Variant(252, precision="int8")
    assert {model.part: part_precision(variant, model.part) for model in variant.sub_models} == {
        **dict.fromkeys(("vision_encoder", "decoder"), "int8"),
        **dict.fromkeys(("text_encoder", "geometry_encoder", "mask_head"), "fp32"),
    }
    assert limits_of(variant) is LIMITS["int8"]
    assert limits_of(variant, "mask_head") is LIMITS["fp32"]
