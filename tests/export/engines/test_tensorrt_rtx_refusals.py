"""What TensorRT for RTX refuses, and with which sentence; and an export that nobody has run yet."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest

from ensemble.engines.plans import library, plan_file
from ensemble.gate import cli as verify
from ensemble.spec import Variant
from export.checkpoint import load
from export.engines.engine import EngineError
from export.engines.registry import ready
from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.settings import TensorRT
from export.engines.tensorrt_rtx import engine, listing
from export.engines.tensorrt_rtx.build import compile_onnx
from export.engines.tensorrt_rtx.package import import_rtx
from export.gate.frames import drawn_frames
from export.sub_models.parts import PARTS
from export.sub_models.tracker.parts import TRACKER_PARTS
from export.tracker import export_tracker
from export.variant import Job, export_variant

trt = pytest.importorskip("tensorrt_rtx_bindings", reason='needs pip install "sam3-triton[rtx]"')


def test_a_graph_that_is_not_one_is_refused_with_the_parsers_words(small, tmp_path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(PlanError, match=r"sam3_text_encoder: TensorRT for RTX .* cannot read model\.onnx: "):
        compile_onnx(tmp_path / "model.onnx", small(140).text_encoder, tmp_path / "model.rtx", "fp16", (89,))


def test_a_graph_of_another_variant_is_refused(graph, small, tmp_path) -> None:
    with pytest.raises(PlanError, match=r"expected inputs .* export it again"):
        compile_onnx(graph(140, "text_encoder"), small(140).decoder, tmp_path / "model.rtx", "fp16", (89,))
    wide = Variant(140, 50, "fp32", checkpoint=small(140).checkpoint)
    with pytest.raises(PlanError, match="expected text_features as FP32, the graph has FP16; export it again"):
        compile_onnx(graph(140, "text_encoder"), wide.text_encoder, tmp_path / "model.rtx", "fp16", (89,))


@pytest.mark.parametrize("capability", [61, 70, 90, 100])
def test_cards_that_it_does_not_build_for_are_refused(capability: int) -> None:
    with pytest.raises(
        ValueError, match=rf"got {capability}\. .*use --engine aoti, or --engine tensorrt in the container"
    ):
        ready("tensorrt_rtx", TensorRT(compute_capability=(89, capability)))


def test_where_it_is_not_installed_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(library.MODULES, "tensorrt_rtx", ("tensorrt_rtx_of_tomorrow",))
    with pytest.raises(EngineError, match=r'install it with pip install "sam3-triton\[rtx\]"'):
        ready("tensorrt_rtx")
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


@pytest.mark.parametrize(
    ("here", "cards", "runs"),
    [
        pytest.param((8, 9), (86, 89), True, id="one of them is here"),
        pytest.param((9, 0), (86, 89), False, id="another GPU is here"),
        pytest.param(None, (89,), False, id="no GPU is here"),
    ],
)
def test_the_gate_runs_where_the_plans_do(here, cards, runs, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: here is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: here)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # CuPy too
    assert (ready("tensorrt_rtx", TensorRT(compute_capability=cards)).open is not None) == runs


# ---- the plan against the graph
LISTING = """Layers:
Name: a_myl0_0, LayerType: kgen, Inputs: [ { Name: input_ids, Dimensions: [-1,32], Datatype: Int32 }], Outputs:\
 [ { Name: x, Dimensions: [-1,32,8], Datatype: %s, Format: x }], TacticName: t, Metadata: [ONNX Layer: node_layer_norm]
Name: _gemm_mha_v2_myl0_1, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1], Datatype: %s, Format: x }], Outputs:\
 [ { Name: text_features, Dimensions: [-1], Datatype: %s, Format: x }], Metadata: [ONNX Layer: node_softmax]
"""


@pytest.mark.parametrize(
    ("types", "sentence"),
    [
        pytest.param(("Float", "Float", "Half"), None, id="as the graph says"),
        pytest.param(("Half", "Half", "Half"), "expected node_layer_norm in fp32, as the graph says", id="narrowed"),
        pytest.param(("Float", "Float", "Float"), "expected text_features as FP16, the plan has FP32", id="widened"),
    ],
)
def test_a_plan_of_other_types_than_the_graph_is_refused(types, sentence) -> None:
    layers = list(listing.parse(LISTING % types))
    assert [(layer.kind, len(layer.tensors)) for layer in layers] == [("kgen", 2)] * 2
    assert listing.summary(layers) == {"layer_types": {"kgen": 2}, "fused_attention": 1}
    record = Variant(252, 50, "fp16").text_encoder
    with pytest.raises(PlanError, match=sentence) if sentence else nullcontext():
        listing.check_layers(layers, record, {"node_layer_norm"})


# ---- the export
def test_a_trackers_plans_wait_for_the_gate_of_the_card(checkpoint, built, tracked, tmp_path, monkeypatch) -> None:
    """Where they are built nothing runs them; a second run keeps them."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plans = {part: built(140, part) for part in TRACKER_PARTS}

    def copied(module, model, variant, path, cards) -> dict:
        shutil.copy(plans[model.part].plan, path)
        return plans[model.part].info

    monkeypatch.setattr(engine, "build_plan", copied)
    source, root = load(str(checkpoint), video=True), tmp_path / "repository"
    job = Job(source, tracked(140), "tensorrt_rtx", root, drawn_frames(1, 140))
    first, second = export_tracker(job), export_tracker(job)
    assert [entry.model for entry in first] == [model.name for model in job.variant.tracker_parts]
    assert ({entry.state for entry in first}, {entry.state for entry in second}) == ({"built"}, {"kept"})
    for entry in first:
        data = json.loads((root / entry.model / "manifest.json").read_text())
        assert (data["engine"], data["gate"], entry.cosine) == ("tensorrt_rtx", None, None)
        assert data["build"]["scratch_mb"] > 0
        plan_file.check(root / entry.artifact, trt.__version__)
    assert not job.staged.exists()


def test_an_export_without_a_gpu_is_marked_as_not_verified(
    checkpoint, built, small, tmp_path, caplog, capsys, monkeypatch
) -> None:
    """The small checkpoint's five plans, built once for all tests, on their way into a repository; a second run keeps
    them."""
    source = load(str(checkpoint))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plans = {part: built(140, part) for part in PARTS}

    def copied(module, model, variant, path, cards) -> dict:
        shutil.copy(plans[model.part].plan, path)
        return plans[model.part].info

    monkeypatch.setattr(engine, "build_plan", copied)
    job = Job(source, small(140), "tensorrt_rtx", tmp_path / "repository", drawn_frames(1, 140))
    first, second = export_variant(job), export_variant(job)
    assert "this machine cannot run it: the gate has not seen it" in caplog.text
    assert [entry.state for entry in first] == ["built"] * 6
    assert [entry.state for entry in second] == ["kept"] * 6
    assert [entry.cosine is None for entry in first] == [True] * 5 + [False]  # the last is the CPU's text encoder
    for entry in first[:5]:
        data = json.loads((job.root / entry.model / "manifest.json").read_text())
        assert (data["engine"], data["gate"]) == ("tensorrt_rtx", None)
        assert data["built_for"] == {"tensorrt_rtx": trt.__version__, "compute_capability": "8.6 8.9 12.0"}
        plan_file.check(job.root / entry.artifact, trt.__version__)
    monkeypatch.setattr("ensemble.server.plans_check.why_not_in_this_python", lambda engine: f"no {engine} here")
    assert verify.main([str(job.root)]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"] == "no tensorrt_rtx here"
