"""What TensorRT for RTX refuses, and with which sentence; and an export that nobody has run yet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ensemble.engines import open_sub_model
from ensemble.spec import Variant
from export.checkpoint import load
from export.engines.engine import EngineError
from export.engines.registry import ready
from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.settings import TensorRT
from export.engines.tensorrt_rtx import engine, package
from export.engines.tensorrt_rtx.build import compile_onnx
from export.engines.tensorrt_rtx.header import SIZE, check_plan
from export.engines.tensorrt_rtx.package import import_rtx, installed_version
from export.gate.frames import drawn_frames
from export.sub_models.parts import PARTS
from export.variant import Job, export_variant

trt = pytest.importorskip("tensorrt_rtx_bindings", reason='needs pip install "sam3-triton[rtx]"')


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
def test_an_export_without_a_gpu_is_marked_as_not_verified(
    checkpoint, built, small, tmp_path, caplog, monkeypatch
) -> None:
    """The small checkpoint's five plans, built once for all tests, on their way into a repository; a second run keeps
    them."""
    source = load(str(checkpoint))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plans = {part: built(252 if part == "text_encoder" else 140, part) for part in PARTS}

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
        check_plan(job.root / entry.artifact, trt.__version__)
    with pytest.raises(ValueError, match="no server of this version runs them"):
        open_sub_model("tensorrt_rtx", job.root / first[0].artifact, 0)
