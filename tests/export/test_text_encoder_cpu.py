"""The text encoder once more for the CPU, beside the artifacts of a GPU: built, measured with them, kept."""

from __future__ import annotations

import copy
import json
import shutil

import pytest

from ensemble import pbtxt
from export.engines import onnxruntime as runtime
from export.engines.registry import ready
from export.gate.frames import drawn_frames
from export.gate.verify import GateError
from export.staging import Job
from export.variant import export_text_encoder_cpu

NAME = "sam3_text_encoder_cpu"


@pytest.fixture
def job(exported, source, tmp_path):
    """An export whose five artifacts are there; ONNX Runtime's stand for a GPU's."""
    export = exported(112)
    root = shutil.copytree(export.root, tmp_path / "repository")
    return Job(source, export.variant, "onnxruntime", root, drawn_frames(2, 112))


def test_it_is_built_once_and_again_when_it_is_not_whole(job):
    tool, steps = ready("onnxruntime"), []
    first = export_text_encoder_cpu(job, tool, steps.append)
    assert (first.model, first.artifact, first.state) == (NAME, f"{NAME}/1/model.onnx", "built")
    assert first.relative_error < 1e-5
    told = json.loads((job.root / NAME / "manifest.json").read_text())
    assert (told["precision"], told["engine"], list(told["gate"]["outputs"])) == (
        "fp32",
        "onnxruntime",
        ["text_features"],
    )
    assert not job.staged.exists()
    assert export_text_encoder_cpu(job, tool, steps.append).state == "kept"
    (job.root / NAME / "1" / "model.onnx").write_bytes(b"")
    assert export_text_encoder_cpu(job, tool, steps.append).state == "built"
    assert sum(step.endswith("building model.onnx") for step in steps) == 2


def test_one_that_is_off_does_not_get_in(job, monkeypatch):
    tool = ready("onnxruntime")

    def wrong(module, model, path):
        off = copy.deepcopy(module)
        off.projection.weight.data *= 1.5
        original(off, model, path)

    original = runtime.export_onnx
    monkeypatch.setattr(runtime, "export_onnx", wrong)
    with pytest.raises(GateError, match="sam3_text_encoder: text_features has"):
        export_text_encoder_cpu(job, tool, lambda step: None)
    assert not (job.root / NAME / "manifest.json").exists()


def test_its_configuration_is_for_the_cpu(tmp_path, exported):
    variant = exported(112).variant
    folder = pbtxt.write(variant.text_encoder_cpu, variant, "onnxruntime", tmp_path)
    config = pbtxt.read(folder / "config.pbtxt")
    assert (folder.name, config.on_gpu, config.parameters["engine"]) == (NAME, False, "onnxruntime")
    assert "TYPE_FP32" in (folder / "config.pbtxt").read_text()
