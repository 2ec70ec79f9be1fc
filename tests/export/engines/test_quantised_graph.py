"""FP8 in the graph: the vision encoder of the small checkpoint with its linear layers in E4M3, in ONNX Runtime and as a
plan of TensorRT for RTX."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import nn

from ensemble.engines.plans import plan_file
from export.checkpoint import at_size, load
from export.engines.engine import EngineError
from export.engines.quantised_graph import quantise_products
from export.engines.registry import ready
from export.engines.tensorrt.settings import TensorRT
from export.engines.tensorrt_rtx import engine
from export.gate.frames import drawn_frames
from export.gate.verify import compare
from export.slim.calibration import Calibration
from export.slim.fp8 import calibrate
from export.variant import Job, build_part

trt = pytest.importorskip("tensorrt_rtx_bindings", reason='needs pip install "sam3-triton[rtx]"')
KEPT = 2
"""Block that stays in fp16."""


@pytest.fixture(scope="module")
def calibration(checkpoint: Path) -> Calibration:
    """Of the small checkpoint on drawn scenes, with one block that E4M3 does not suit."""
    frames = [frame.pixels for frame in drawn_frames(4, 140)]
    found = calibrate(at_size(load(str(checkpoint)).model, 140, 50), "", frames)
    return replace(found, errors=tuple(1.0 if n == KEPT else 0.0 for n in range(len(found.errors))))


@pytest.fixture(scope="module")
def quantised(built: Callable, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp8") / "model.onnx"
    shutil.copy(built(140, "vision_encoder").graph, path)
    noted = engine.in_fp8(nn.Module(), calibration)
    quantise_products(path, getattr(noted, engine.MAXIMA), "sam3_vision_encoder_r140_fp8")
    return path


def test_the_graph_computes_what_it_did_within_fp8s_limits(quantised, built) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it turns E4M3, and cannot
    options.intra_op_num_threads = 2
    feed = {"pixel_values": np.stack([frame.pixels for frame in drawn_frames(2, 140)])}
    names = ["fpn_0", "fpn_1", "fpn_2"]
    found, wanted = (
        dict(zip(names, onnxruntime.InferenceSession(path, options).run(names, feed), strict=True))
        for path in (quantised, built(140, "vision_encoder").graph)
    )
    cosines = {name: compare(found[name], value)[0] for name, value in wanted.items()}
    assert all(0.99 < cosine < 0.999999 for cosine in cosines.values()), cosines


def test_all_blocks_but_the_one_that_stays_are_quantised(quantised, calibration) -> None:
    nodes = onnx.load(quantised).graph.node
    made_by = {name: node for node in nodes for name in node.output}
    products = [n for n in nodes if n.op_type == "MatMul" and "/back" in n.input[0]]
    assert len(products) == 4 * (len(calibration.maxima) - 1)
    for node in products:
        pairs = [made_by[made_by[name].input[0]] for name in node.input]
        assert [made_by[name].op_type for name in node.input] == ["DequantizeLinear"] * 2
        assert [pair.op_type for pair in pairs] == ["QuantizeLinear"] * 2
    weights = {i.name for i in onnx.load(quantised).graph.initializer}
    assert sum(n.op_type == "MatMul" and n.input[1] in weights for n in nodes) == 4  # the block that stays


def test_a_calibration_of_another_checkpoint_is_refused(quantised, built, tmp_path) -> None:
    path = shutil.copy(built(140, "vision_encoder").graph, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"sam3_one: expected a graph of 3 products with weights, got 32"):
        quantise_products(Path(path), [1.0, None, 2.0], "sam3_one")


def test_the_export_builds_a_plan_of_it(checkpoint, built, small, calibration, tmp_path, monkeypatch) -> None:
    """As `sam3-export --precision fp8 --engine tensorrt_rtx --compute-capability 89 120` does; the graph of fp16 is the
    one that was traced for all tests."""
    graph = built(140, "vision_encoder").graph
    monkeypatch.setattr(engine, "export_onnx", lambda module, model, path: shutil.copy(graph, path))
    source, variant = load(str(checkpoint)), replace(small(140), precision="fp8")
    tool = ready("tensorrt_rtx", TensorRT(compute_capability=(89, 120)), "fp8")
    job = Job(source, variant, "tensorrt_rtx", tmp_path / "repository", ())
    sized = at_size(source.model, 140, 50)
    facts = build_part(job, tool, sized, "vision_encoder", "recipe", calibration)
    assert facts["build"]["precisions"]["FP8"] == 2 * 4 * (len(calibration.maxima) - 1)
    assert facts["build"]["precisions"]["FLOAT"] > 40  # normalisations, softmaxes
    assert facts["build"]["calibration"]["blocks_in_fp16"] == [KEPT]
    folder = job.staged / "sam3_vision_encoder_r140_fp8" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["calibration.json", "model.rtx"]
    plan_file.check(folder / "model.rtx", trt.__version__)


def test_fp8_is_refused_for_older_cards_before_anything_is_built() -> None:
    with pytest.raises(EngineError, match=r"fp8 needs cards of .* 8\.9 or later .*--compute-capability 8\.6 8\.9;"):
        ready("tensorrt_rtx", TensorRT(compute_capability=(86, 89)), "fp8")
