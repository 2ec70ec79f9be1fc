"""Plans of TensorRT for RTX, built without a GPU: all five sub-models of the small checkpoint, for three generations of
cards. What they are built from shares parser, network and builder calls with the container's TensorRT 10 and 11."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

from ensemble.engines import open_sub_model
from ensemble.spec import Variant
from export.checkpoint import at_size, load
from export.engines.engine import EngineError
from export.engines.onnx import export_onnx
from export.engines.registry import ready
from export.engines.tensorrt.definition import Definition, define
from export.engines.tensorrt.network import PlanError, profile_shapes
from export.engines.tensorrt.settings import TensorRT
from export.engines.tensorrt.version import Version
from export.engines.tensorrt_rtx import package
from export.engines.tensorrt_rtx.build import LEVEL, VersionRtx, compile_onnx
from export.engines.tensorrt_rtx.engine import ENGINE
from export.engines.tensorrt_rtx.header import SIZE, check_plan, read_header
from export.engines.tensorrt_rtx.package import USUAL, import_rtx, installed_version
from export.gate.frames import drawn_frames
from export.sub_models.parts import PARTS, make_part
from export.variant import Job, export_variant
from tests.export.engines.rtx_graphs import Told, quantised

trt = pytest.importorskip("tensorrt_rtx_bindings", reason='needs pip install "sam3-triton[rtx]"')

PLANS = [pytest.param(252, part, id=f"252, {part}") for part in PARTS] + [
    pytest.param(140, part, id=f"140, windows are padded, {part}") for part in PARTS if part != "text_encoder"
]
"""Resolution and sub-model; there is one text encoder for all resolutions."""
ONNX_NAMES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "INT32": "INT32", "INT64": "INT64", "BOOL": "BOOL", "UINT8": "UINT8"}
"""ONNX's name of a dtype -> TensorRT's."""


@pytest.fixture(scope="module")
def small(checkpoint: Path) -> Callable[[int], Variant]:
    """Resolution -> the small checkpoint's variant in fp16, as the export makes it."""
    record = load(str(checkpoint)).record
    return lambda resolution: Variant(resolution, 50, "fp16", checkpoint=record)


@pytest.fixture(scope="module")
def graph(
    checkpoint: Path, small: Callable[[int], Variant], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, str], Path]:
    """(resolution, part) -> the strongly typed graph that plans are built from."""
    source = load(str(checkpoint))
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def write(resolution: int, part: str) -> Path:
        model = at_size(source.model, resolution, 50)
        path = folder / f"{part}-{resolution}.onnx"
        return export_onnx(make_part(part, model, ENGINE.style, "fp16"), getattr(small(resolution), part), path)

    return write


@pytest.fixture(scope="module")
def defined(graph: Callable[[int, str], Path], small: Callable[[int], Variant]) -> Callable[[int, str], Definition]:
    """(resolution, part) -> what the builder is given."""
    logger = trt.Logger(trt.Logger.ERROR)

    @cache
    def parsed(resolution: int, part: str) -> Definition:
        record = getattr(small(resolution), part)
        return define(trt, logger, VersionRtx(USUAL), graph(resolution, part), record, "fp16", LEVEL)

    return parsed


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
def test_types_stay_as_written(resolution, part, graph, defined, small) -> None:
    """Every tensor that the graph names has its dtype in the typed network, from which a builder may not depart: sums
    of normalisations and softmaxes, boxes and their encodings in fp32, products in fp16."""
    network, declared = defined(resolution, part).network, written(graph(resolution, part))
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    found = {tensor.name: name_of(tensor.dtype) for tensor in tensors(network)}
    nodes = onnx.load(graph(resolution, part), load_external_data=False).graph.node
    results = [name for node in nodes for name in node.output if name in declared]
    assert len(results) > 50
    assert {n: found.get(n) for n in results if found.get(n) != declared[n]} == {}
    islands = {name for node in nodes if node.op_type in ("LayerNormalization", "Softmax") for name in node.output}
    assert len(islands) >= 2
    assert {found[name] for name in islands} == {"FLOAT"}
    products = [name for node in nodes if node.op_type == "MatMul" for name in node.output]
    assert sum(found[name] == "HALF" for name in products) > len(products) / 2
    record = getattr(small(resolution), part)
    names = {"FP32": "FLOAT", "FP16": "HALF", "INT32": "INT32", "UINT8": "UINT8"}
    ends = [network.get_input(i) for i in range(network.num_inputs)]
    ends += [network.get_output(i) for i in range(network.num_outputs)]
    expected = {t.name: names[t.dtype] for t in (*record.inputs, *record.outputs)}
    assert {tensor.name: name_of(tensor.dtype) for tensor in ends} == expected


@pytest.mark.parametrize(("resolution", "part"), PLANS)
def test_a_plan_is_built_for_all_cards_at_once(resolution, part, defined, tmp_path) -> None:
    builder, network, config, _ = defined(resolution, part)
    cards = [config.get_compute_capability(i) for i in range(config.num_compute_capabilities)]
    assert cards == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM89, trt.ComputeCapability.SM120]
    serialized = builder.build_serialized_network(network, config)
    assert serialized is not None
    path = tmp_path / "model.rtx"
    path.write_bytes(memoryview(serialized))
    assert read_header(path) == (trt.__version__, serialized.nbytes)
    check_plan(path, installed_version())


@pytest.mark.parametrize("part", PARTS)
def test_the_profile_holds_the_records_axes(part, small, defined) -> None:
    """Asked of a profile itself, which refuses what it does not take; the network varies along these axes alone."""
    record = getattr(small(252), part)
    builder, network, *_ = defined(252, part)
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
    path, variant = graph(252, "text_encoder"), small(252)
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
    pairs = quantised(graph(252, "text_encoder"), tmp_path / "model.onnx", precision)
    variant = small(252)
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
    check_plan(plan, installed_version())
    assert info["precisions"][precision.upper()] == pairs


def test_the_builder_refuses_fp8_for_a_card_without_it(graph, small, tmp_path) -> None:
    quantised(graph(252, "text_encoder"), tmp_path / "model.onnx", "fp8")
    with pytest.raises(PlanError, match=r"built no plan for compute capability 8\.6, 8\.9: .*sm86.*fp8_e4m3"):
        compile_onnx(tmp_path / "model.onnx", small(252).text_encoder, tmp_path / "model.rtx", "fp16", (86, 89))
    assert not (tmp_path / "model.rtx").exists()


# ---- bad input
@pytest.fixture(scope="module")
def plan(graph, small, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.rtx"
    compile_onnx(graph(252, "text_encoder"), small(252).text_encoder, path, "fp16", (89,))
    return path


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(
            lambda b: b[:24] + bytes([1, 6, 1, 120]) + b[28:], r"1\.7\.1\.116.*got one of 1\.6\.1\.120", id="old"
        ),
        pytest.param(
            lambda b: b[: len(b) // 2], r"expected a plan of \d+ bytes, got \d+: it was not written whole", id="half"
        ),
        pytest.param(lambda b: b + b"\0", "it was not written whole", id="longer"),
        pytest.param(lambda b: b[:40], "expected a plan of TensorRT for RTX, got something else", id="only a start"),
        pytest.param(lambda b: b"", "got something else", id="empty"),
        pytest.param(lambda b: b"ftrt" + b[4:], "got something else", id="an ordinary TensorRT's"),
        pytest.param(lambda b: bytes(SIZE) + b, "got something else", id="zeros"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(spoil, sentence, plan, tmp_path) -> None:
    path = tmp_path / "model.rtx"
    path.write_bytes(spoil(plan.read_bytes()))
    with pytest.raises(PlanError, match=sentence) as refused:
        check_plan(path, installed_version())
    assert "export it again" in str(refused.value)


def test_a_graph_that_is_not_one_is_refused_with_the_parsers_words(small, tmp_path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(PlanError, match=r"sam3_text_encoder: TensorRT for RTX .* cannot read model\.onnx: "):
        compile_onnx(tmp_path / "model.onnx", small(252).text_encoder, tmp_path / "model.rtx", "fp16", (89,))


def test_a_graph_of_another_variant_is_refused(graph, small, tmp_path) -> None:
    with pytest.raises(PlanError, match=r"expected inputs .* export it again"):
        compile_onnx(graph(252, "text_encoder"), small(252).decoder, tmp_path / "model.rtx", "fp16", (89,))
    wide = Variant(252, 50, "fp32", checkpoint=small(252).checkpoint)
    with pytest.raises(PlanError, match="expected text_features as FP32, the graph has FP16; export it again"):
        compile_onnx(graph(252, "text_encoder"), wide.text_encoder, tmp_path / "model.rtx", "fp16", (89,))


@pytest.mark.parametrize("capability", [61, 70, 90, 100])
def test_cards_that_it_does_not_build_for_are_refused(capability: int) -> None:
    with pytest.raises(
        ValueError, match=rf"got {capability}\. .*use --engine aoti, or --engine tensorrt in the container"
    ):
        ready("tensorrt_rtx", TensorRT(compute_capability=(89, capability)))


def test_where_it_is_not_installed_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(package, "PACKAGES", ("tensorrt-rtx-of-tomorrow",))
    with pytest.raises(EngineError, match=r'install it with pip install "sam3-triton\[rtx\]"'):
        ready("tensorrt_rtx")
    monkeypatch.setattr(package, "MODULES", ("tensorrt_rtx_of_tomorrow",))
    with pytest.raises(ImportError, match=r"expected TensorRT for RTX .*sam3-triton\[rtx\]"):
        import_rtx()


@pytest.mark.parametrize(
    ("cards", "stated"), [((), "8.6 8.9 12.0"), ((120, 86), "8.6 12.0")], ids=["no GPU here: all three", "as asked"]
)
def test_the_tool_says_what_it_builds_for(cards, stated, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    tool = ready("tensorrt_rtx", TensorRT(compute_capability=cards))
    assert tool.built_for == {"tensorrt_rtx": trt.__version__, "compute_capability": stated}
    assert list(tool.refused) == ["fp8"]


def test_on_a_machine_with_a_gpu_it_builds_for_that_one(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (12, 0))
    tool = ready("tensorrt_rtx")
    assert tool.built_for["compute_capability"] == "12.0"
    assert tool.refused == {}


# ---- the export
def test_an_export_without_a_gpu_is_marked_as_not_verified(source, tmp_path, caplog, monkeypatch) -> None:
    """The random checkpoint, every sub-model, as `sam3-export` makes them; a second run keeps all."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    variant = Variant(112, 20, "fp16", max_batch=2, max_pairs=8, checkpoint=source.record)
    job = Job(source, variant, "tensorrt_rtx", tmp_path / "repository", drawn_frames(1, 112))
    first, second = export_variant(job), export_variant(job)
    assert "this machine cannot run it: the gate has not seen it" in caplog.text
    assert [entry.state for entry in first] == ["built"] * 6
    assert [entry.state for entry in second] == ["kept"] * 6
    assert [entry.cosine is None for entry in first] == [True] * 5 + [False]  # the last is the CPU's text encoder
    for entry in first[:5]:
        data = json.loads((job.root / entry.model / "manifest.json").read_text())
        assert (data["engine"], data["gate"]) == ("tensorrt_rtx", None)
        assert data["built_for"] == {"tensorrt_rtx": trt.__version__, "compute_capability": "8.6 8.9 12.0"}
        check_plan(job.root / entry.artifact, trt.__version__)
    with pytest.raises(ValueError, match="no server of this version runs them"):
        open_sub_model("tensorrt_rtx", job.root / first[0].artifact, 0)
