"""Plans of TensorRT for RTX, built without a GPU: all sub-models of the small checkpoint, its tracker's too, for three
generations of cards. What they are built from shares parser, network and builder calls with the container's TensorRT 10
and 11."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from ensemble.engines.plans import plan_file
from ensemble.spec import Variant
from export.engines.tensorrt.definition import define
from export.engines.tensorrt.network import PlanError, profile_shapes
from export.engines.tensorrt.version import Version
from export.engines.tensorrt_rtx.build import LEVEL, VersionRtx, compile_onnx, precisions
from export.engines.tensorrt_rtx.package import USUAL
from export.repository import file_sha256
from export.sub_models.parts import PARTS
from export.sub_models.tracker.parts import TRACKER_PARTS
from tests.export.engines.rtx_graphs import Told, quantised

trt = pytest.importorskip("tensorrt_rtx_bindings", reason='needs pip install "sam3-triton[rtx]"')

ROOT = Path(__file__).parents[3]
ALL = (*PARTS, *TRACKER_PARTS)
PLANS = [pytest.param(140, part, id=part) for part in ALL]
PLANS.append(pytest.param(252, "vision_encoder", id="vision_encoder, no window is padded"))
"""Resolution and sub-model. The others' graphs are the same at all resolutions, but for their constants."""
FP32_OPERATORS = {"vision_encoder": 17, "text_encoder": 5, "geometry_encoder": 10, "decoder": 30, "mask_head": 9}
FP32_OPERATORS |= {"tracker_neck": 1, "tracker_step": 23, "memory_encoder": 6, "tracker_seed": 17}
"""Normalisations, sums and products that the graph computes in fp32, at least."""
ONNX_NAMES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "INT32": "INT32", "INT64": "INT64", "BOOL": "BOOL", "UINT8": "UINT8"}
"""ONNX's name of a dtype -> TensorRT's."""


def tensors(network: Any) -> Iterator[Any]:
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        yield from (layer.get_output(i) for i in range(layer.num_outputs))


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("DataType.")


def written(path: Path) -> dict[str, str]:
    """TensorRT's name of each tensor's dtype, as the graph declares it."""
    graph = onnx.load(path, load_external_data=False).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    names = {v.name: onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in values}
    return {name: ONNX_NAMES[dtype] for name, dtype in names.items()}


@pytest.mark.parametrize(("resolution", "part"), PLANS)
def test_types_stay_as_written(resolution, part, graph, defined, record) -> None:
    """Every tensor that the graph names has its dtype in the typed network, from which a builder may not depart: sums
    of normalisations and softmaxes, boxes and their encodings in fp32, products in fp16."""
    network, declared = defined(resolution, part).network, written(graph(resolution, part))
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    found = {tensor.name: name_of(tensor.dtype) for tensor in tensors(network)}
    nodes = onnx.load(graph(resolution, part), load_external_data=False).graph.node
    results = [name for node in nodes for name in node.output if name in declared]
    assert len(results) > 40
    assert {n: found.get(n) for n in results if found.get(n) != declared[n]} == {}
    islands = {name for node in nodes if node.op_type in ("LayerNormalization", "Softmax") for name in node.output}
    assert len(islands) >= 2
    assert {found[name] for name in islands} == {"FLOAT"}
    products = [name for node in nodes if node.op_type == "MatMul" for name in node.output]
    assert sum(found[name] == "HALF" for name in products) > len(products) / 2
    spec = record(resolution, part)
    names = {"FP32": "FLOAT", "FP16": "HALF", "INT32": "INT32", "UINT8": "UINT8"}
    ends = [network.get_input(i) for i in range(network.num_inputs)]
    ends += [network.get_output(i) for i in range(network.num_outputs)]
    expected = {t.name: names[t.dtype] for t in (*spec.inputs, *spec.outputs)}
    assert {tensor.name: name_of(tensor.dtype) for tensor in ends} == expected


@pytest.mark.parametrize(("resolution", "part"), PLANS)
def test_a_plan_is_built_for_all_cards_at_once(resolution, part, built, defined) -> None:
    made, (_, network, config, _) = built(resolution, part), defined(resolution, part)
    cards = [config.get_compute_capability(i) for i in range(config.num_compute_capabilities)]
    assert cards == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM89, trt.ComputeCapability.SM120]
    assert made.info["onnx_sha256"] == [file_sha256(made.graph)]
    assert made.info["layers"] == network.num_layers
    assert made.info["precisions"] == dict(precisions(network))
    plan_file.check(made.plan, trt.__version__)
    assert made.info["operators_in_fp32"] >= FP32_OPERATORS[part]
    assert sum(made.info["layer_types"].values()) >= 15
    assert 1 < made.info["scratch_mb"] < 500
    assert 50 < made.info["peak_memory_mb"] < 4000
    weights = sum(numpy_helper.to_array(i).nbytes for i in onnx.load(made.graph).graph.initializer)
    assert made.plan.stat().st_size > 0.9 * weights


@pytest.mark.parametrize("part", ALL)
def test_the_profile_holds_the_records_axes(part, record, defined) -> None:
    """Asked of a profile itself, which refuses what it does not take; the network varies along these axes alone."""
    record = record(140, part)
    builder, network, *_ = defined(140, part)
    profile = builder.create_optimization_profile()
    for name, shapes in profile_shapes(record).items():
        profile.set_shape(name, *shapes)
    for i in range(network.num_inputs):
        tensor, spec = network.get_input(i), record.input(network.get_input(i).name)
        assert [n for n, size in enumerate(tensor.shape) if size == -1] == list(spec.axes)
        bounds = [
            tuple(d if isinstance(d, int) else getattr(d, bound) for d in spec.dims)
            for bound in ("minimum", "optimum", "maximum")
        ]
        assert [tuple(shape) for shape in profile.get_shape(tensor.name)] == bounds


def told(version: Version, path: Path, variant: Variant) -> list[tuple[str, Any]]:
    """What a builder is told of the graph at `path` for this version."""
    calls: list[tuple[str, Any]] = []
    define(Told(trt, calls), trt.Logger(trt.Logger.ERROR), version, path, variant.text_encoder, "fp16", LEVEL)
    return calls


def test_the_containers_tensorrt_is_told_the_same_call_for_call(graph, small) -> None:
    """Both run through the real package, the container's as far as both have the same calls: names, flags, profile."""
    path, variant = graph(140, "text_encoder"), small(140)
    container, own = (told(version, path, variant) for version in (Version(), VersionRtx(USUAL)))
    assert [call for call in own if "compute_capabilit" not in call[0]] == container
    assert [call[0] for call in own if call not in container] == [
        "IBuilderConfig.num_compute_capabilities",
        *["IBuilderConfig.set_compute_capability"] * 3,
    ]
    flags = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag
    assert ("Builder.create_network", (1 << int(flags[0].STRONGLY_TYPED),)) in container
    assert ("OnnxParser.parse_from_file", (str(path),)) in container
    assert ("IBuilderConfig.clear_flag", (flags[1].TF32,)) in container
    assert ("IBuilderConfig.builder_optimization_level", 3) in container
    assert ("IBuilderConfig.profiling_verbosity", trt.ProfilingVerbosity.DETAILED) in container
    assert ("IOptimizationProfile.set_shape", ("input_ids", (1, 32), (4, 32), (32, 32))) in container
    assert container[-1][0] == "IBuilderConfig.clear_flag"


# ---- graphs with quantised products
@pytest.mark.parametrize(("precision", "cards"), [("int8", USUAL), ("fp8", (89, 120))])
def test_quantised_products_stay_quantised(precision, cards, graph, small, tmp_path) -> None:
    pairs = quantised(graph(140, "text_encoder"), tmp_path / "model.onnx", precision)
    variant = small(140)
    record, plan = variant.text_encoder, tmp_path / "model.rtx"
    logger = trt.Logger(trt.Logger.ERROR)
    network = define(trt, logger, VersionRtx(cards), tmp_path / "model.onnx", record, "fp16", LEVEL).network
    found = {tensor.name: name_of(tensor.dtype) for tensor in tensors(network)}
    names = [f"quantised_{i}" for i in range(1, pairs + 1)]
    assert pairs > 10
    assert {found[name] for name in names} == {precision.upper()}
    assert {found[f"{name}_back"] for name in names} == {"HALF"}
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert {found[n.output[0]] for n in nodes if n.op_type in ("LayerNormalization", "Softmax")} == {"FLOAT"}
    info = compile_onnx(tmp_path / "model.onnx", record, plan, "fp16", cards)
    plan_file.check(plan, trt.__version__)
    assert info["precisions"][precision.upper()] == pairs


def test_the_builder_refuses_fp8_for_a_card_without_it(graph, small, tmp_path) -> None:
    quantised(graph(140, "text_encoder"), tmp_path / "model.onnx", "fp8")
    with pytest.raises(PlanError, match=r"built no plan for compute capability 8\.6, 8\.9: .*sm86.*fp8_e4m3"):
        compile_onnx(tmp_path / "model.onnx", small(140).text_encoder, tmp_path / "model.rtx", "fp16", (86, 89))
    assert not (tmp_path / "model.rtx").exists()
