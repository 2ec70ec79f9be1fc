"""INT8 for GPUs: Q/DQ pairs with scales from a calibration, layers that stay in fp16, and plans made of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble.engines.plans import plan_file
from ensemble.gate.compare import compare
from ensemble.gate.limits import limits_of, part_precision
from ensemble.spec import ENGINES, Variant
from export.calibration_options import METHODS
from export.checkpoint import at_size, load
from export.engines.engine import EngineError
from export.engines.int8_calibrated import magnitudes, quantise_calibrated
from export.engines.onnxruntime import onnx_session
from export.engines.registry import ready
from export.engines.tensorrt import engine as tensorrt
from export.engines.tensorrt.settings import TensorRT
from export.engines.tensorrt_rtx import engine
from export.gate.frames import drawn_frames
from export.slim.int8_inputs import calibration_inputs, calibration_scenes, digest
from export.variant import Job, build_part
from tests.export.engines import two_products
from tests.export.engines.two_products import WIDTH, file_of, weights_of

WEIGHTS = weights_of(np.float16)
WEIGHTS["odd"][:, 1] *= 100  # one column that lies apart


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """x -> x @ even, x @ odd.T"""
    nodes = [
        helper.make_node("MatMul", ["x", "even"], ["y_even"], name="times_even"),
        helper.make_node("Gemm", ["x", "odd"], ["y_odd"], name="times_odd", transB=1),
    ]
    return file_of(tmp_path / "model.onnx", nodes, {**WEIGHTS, "odd": WEIGHTS["odd"].T.copy()})


def x_of(first: float) -> np.ndarray:
    return two_products.x_of(first, np.float16)


@pytest.mark.parametrize("method", METHODS)
def test_both_factors_are_rounded_with_a_scale_for_each_column_of_the_weights(method, path):
    before = onnx_session(path)({"x": x_of(1.0)})
    told = quantise_calibrated(path, [{"x": x_of(1.0)}], method)
    assert (told["products"], told["in_fp16"], told["calibration"]) == (2, [], method)
    model = onnx.load(path)
    values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer if i.data_type != TensorProto.INT8}
    rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert [[a.i for a in node.attribute] for node in rounded] == [[], [1], [], [0]]
    assert [values[node.input[1]].shape for node in rounded] == [(), (WIDTH,)] * 2
    np.testing.assert_allclose(values[rounded[1].input[1]], np.abs(WEIGHTS["even"]).max(0) / 127, rtol=1e-3)
    after = onnx_session(path)({"x": x_of(1.0)})
    for name, value in before.items():
        columns = np.linalg.norm(np.float32(after[name]) - value, axis=0) / np.linalg.norm(np.float32(value), axis=0)
        assert 0 < columns.max() < 0.1, "the column that lies apart takes no steps from the others"


def test_a_product_that_one_scale_does_not_suit_stays_in_fp16(path):
    before = onnx_session(path)({"x": x_of(1000.0)})
    told = quantise_calibrated(path, [{"x": x_of(1000.0)}], "minmax")
    assert told["in_fp16"] == ["times_even"]
    np.testing.assert_array_equal(onnx_session(path)({"x": x_of(1000.0)})["y_even"], before["y_even"])


def test_methods_differ_by_the_rarest_values(path):
    from export.engines.int8 import products

    x = np.random.default_rng(2).normal(0, 1, (20_000, WIDTH)).astype(np.float16)
    x[0, 0] = 50.0
    model = onnx.load(path)
    found = {m: magnitudes(path, model, products(model), [{"x": x[:5]}, {"x": x}], m)["x"] for m in METHODS}
    assert found["minmax"] == 50.0
    assert 3 < found["entropy"] < 10
    assert 3 < found["percentile"] < 10
    with pytest.raises(ValueError, match="calibration must be one of percentile, minmax, entropy, got 'mean'"):
        quantise_calibrated(path, [{"x": x}], "mean")


def test_a_graph_that_int8_does_not_suit_is_refused_and_left_alone(path):
    held = path.read_bytes()
    with pytest.raises(ValueError, match="all 2 have more; this checkpoint does not suit INT8: use --precision fp16"):
        quantise_calibrated(path, [{"x": x_of(np.nan)}], "minmax")
    assert path.read_bytes() == held


def test_int8_is_beside_fp16_on_gpus_and_beside_fp32_on_processors():
    exact = {name: spec.exact("int8") for name, spec in ENGINES.items() if "int8" in spec.precisions}
    assert exact == {"tensorrt": "int8_fp16", "tensorrt_rtx": "int8_fp16", "onnxruntime": "int8"}
    variant = Variant(252, precision="int8_fp16")
    assert (variant.float_dtype, variant.front_name) == ("FP16", "sam3_r252_int8")
    parts = {model.part: part_precision(variant, model.part) for model in variant.sub_models}
    assert set(parts.items()) >= {("vision_encoder", "int8_fp16"), ("decoder", "int8_fp16"), ("mask_head", "fp16")}


def test_tensorrt_8_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(TensorRT, "about", lambda self: {"tensorrt": "8.6.0", "compute_capability": "9.0"})
    assert tensorrt.ready(TensorRT()).engine is tensorrt.ENGINE
    with pytest.raises(EngineError, match=r"int8 needs TensorRT 10 or 11, .* got 8\.6\.0; .* or use --precision fp16"):
        ready("tensorrt", precision="int8")


def test_frames_take_turns_with_words():
    frames = [np.zeros((3, 28, 28), np.uint8)] * 3
    scenes = calibration_scenes(frames, ("car", "bus", "tram"), 28)
    assert [scene.prompts[:2] for scene in scenes] == [("car", "bus"), ("tram", "car"), ("bus", "tram")]


def test_a_plan_of_the_small_checkpoint(checkpoint, built, small, tmp_path, monkeypatch):
    """As `sam3-export --engine tensorrt_rtx --precision int8 --compute-capability 86 89 120` builds it; the graph of
    fp16 is the one that was traced for all tests."""
    pytest.importorskip("tensorrt_rtx_bindings", reason='needs pip install "sam3-triton[rtx]"')
    graph, kept = built(140, "vision_encoder").graph, tmp_path / "graph.onnx"
    monkeypatch.setattr(engine, "export_onnx", lambda module, model, path: shutil.copy(graph, path))
    monkeypatch.setattr(engine, "file_sha256", lambda path: str(shutil.copy(path, kept)))
    source, variant = load(str(checkpoint)), replace(small(140), precision="int8_fp16")
    sized = at_size(source.model, 140, 50)
    scenes = drawn_frames(2, 140)
    inputs = calibration_inputs(scenes[:1], source, sized, variant)
    assert {part: len(feeds) for part, feeds in inputs.items()} == {"vision_encoder": 1, "decoder": 2}
    tool = ready("tensorrt_rtx", TensorRT(compute_capability=(86, 89, 120)), "int8")
    job = Job(source, variant, "tensorrt_rtx", tmp_path / "repository", ())
    facts = build_part(job, tool, sized, "vision_encoder", "recipe", None, lambda: inputs)
    said = facts["build"]["int8"]
    assert (said["products"], said["in_fp16"], said["calibration"], said["inputs"]) == (32, [], "percentile", 1)
    assert facts["build"]["precisions"]["INT8"] == 2 * 32
    plan_file.check(job.staged / "sam3_vision_encoder_r140_int8" / "1" / "model.rtx", tool.built_for["tensorrt_rtx"])
    feed = {"pixel_values": scenes[1].pixels[None]}
    answers, wanted = onnx_session(kept, 2)(feed), onnx_session(graph, 2)(feed)
    for name, value in wanted.items():
        assert limits_of(variant, "vision_encoder").cosine <= compare(answers[name], value)[0] < 0.999999


def test_the_digest_tells_frames_words_and_methods_apart(checkpoint):
    source, scenes = load(str(checkpoint)), drawn_frames(2, 140)
    renamed = [replace(scenes[0], prompts=("lorry",)), scenes[1]]
    found = {
        digest(scenes, "minmax", source),
        digest(scenes, "entropy", source),
        digest(scenes[:1], "minmax", source),
        digest(renamed, "minmax", source),
    }
    assert len(found) == 4
    assert digest(drawn_frames(2, 140), "minmax", source) in found
