"""Plans in other processes: the messages, the environment, the child that dies; on a GPU with TensorRT, a plan through the gate."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ensemble.spec import Variant
from export import wire
from export.tensorrt_host import ROOT, PlanProcess, TensorRT, child_environment
from export.tensorrt_network import PlanError, profile_shapes, summarise
from export.wire import Array, WireError

STAND_IN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from export.onnx_graph import onnx_session
from export.tensorrt_host import DTYPES, DTYPE_NAMES
from export.tensorrt_network import PlanError
from export.tensorrt_worker import serve
from export.wire import Array

class Runner:
    facts = {"runner": "onnxruntime"}
    def __init__(self, path): self.session = onnx_session(path, 1)
    def run(self, inputs):
        if inputs["input_ids"].shape[1] != 32: raise PlanError("input_ids is outside the profile")
        if np.frombuffer(inputs["input_ids"].data, np.int32).max() == 7: sys.exit("struck by lightning")
        arrays = {n: np.frombuffer(a.data, DTYPES[a.dtype]).reshape(a.shape) for n, a in inputs.items()}
        return {n: Array(DTYPE_NAMES[a.dtype], a.shape, bytearray(a.tobytes())) for n, a in self.session(arrays).items()}

serve(Runner(Path(sys.argv[2])), sys.stdin.buffer, sys.stdout.buffer)
"""
"""ONNX Runtime behind the worker's own loop, in a process as the plan's would be."""


@pytest.fixture(scope="module")
def text_encoder(exported) -> Path:
    return exported(112).root / "sam3_text_encoder" / "1" / "model.onnx"


@pytest.fixture
def process(text_encoder):
    with PlanProcess([sys.executable, "-c", STAND_IN, str(ROOT), str(text_encoder)]) as process:
        yield process


def test_another_process_answers_as_this_one_would(process, exported):
    ids = np.random.default_rng(0).integers(8, 60, (3, 32), np.int32)
    assert process.facts == {"ready": True, "runner": "onnxruntime"}
    for rows in (ids, ids[:1], ids[::-1]):  # the last is not contiguous
        wanted = exported(112).runs["text_encoder"]({"input_ids": np.ascontiguousarray(rows)})
        found = process({"input_ids": rows})
        assert found.keys() == wanted.keys()
        np.testing.assert_allclose(found["text_features"], wanted["text_features"], atol=1e-5)


def test_a_refused_request_is_an_error_and_the_next_is_answered(process):
    with pytest.raises(PlanError, match="outside the profile"):
        process({"input_ids": np.ones((1, 5), np.int32)})
    assert process({"input_ids": np.ones((1, 32), np.int32)})["text_features"].shape[:2] == (1, 32)


def test_a_process_that_dies_leaves_its_last_words(process):
    with pytest.raises(PlanError, match="ended with status 1; it said last: struck by lightning"):
        process({"input_ids": np.full((1, 32), 7, np.int32)})


def test_a_process_that_never_starts_leaves_its_last_words():
    with pytest.raises(PlanError, match="no such plan"):
        PlanProcess([sys.executable, "-c", "import sys; sys.exit('no such plan')"])


@pytest.mark.parametrize("dtype", ["UINT8", "INT32", "FP32", "FP16"])
def test_messages_carry_every_dtype(dtype):
    data = bytearray(range(24 * wire.ITEM_BYTES[dtype]))
    stream = io.BytesIO()
    sent = {"a": Array(dtype, (2, 3, 4), data), "none": Array(dtype, (0, 4), bytearray())}
    wire.send(stream, {"do": "run"}, sent)
    stream.seek(0)
    assert wire.receive(stream) == ({"do": "run"}, sent)
    assert wire.receive(stream) is None


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        pytest.param(b"Segmentation fault\n", "expected a line of JSON", id="no JSON"),
        pytest.param(
            b'{"tensors": [{"name": "a", "dtype": "FP32", "shape": [2]}]}\n1234',
            "expected 8 bytes of a, .* after 4",
            id="cut off",
        ),
    ],
)
def test_what_is_no_message_is_refused(sent, sentence):
    with pytest.raises(WireError, match=sentence):
        wire.receive(io.BytesIO(sent))


def test_another_interpreter_gets_no_paths_of_this_one(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/site")
    monkeypatch.setenv("PYTHONHOME", "/home")
    assert {"PYTHONPATH", "PYTHONHOME"} <= child_environment(sys.executable).keys()
    assert {"PYTHONPATH", "PYTHONHOME"}.isdisjoint(child_environment("/opt/trt/python"))


def test_the_interpreter_is_named_by_option_then_by_variable(monkeypatch):
    monkeypatch.setenv("SAM3_TENSORRT_PYTHON", "/from/variable")
    assert TensorRT().interpreter == "/from/variable"
    assert TensorRT(python="/from/option").interpreter == "/from/option"
    monkeypatch.delenv("SAM3_TENSORRT_PYTHON")
    assert TensorRT().interpreter == sys.executable


def test_what_runs_beside_tensorrt_imports_nothing_else(tmp_path):
    """An interpreter without site packages, started elsewhere, gets as far as the driver or `import tensorrt`."""
    command = TensorRT().command("about")
    done = subprocess.run([command[0], "-I", "-S", *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "No module named 'tensorrt'" in done.stdout


@pytest.mark.parametrize("name", ["cuda_driver", "wire", "tensorrt_network", "tensorrt_plan", "tensorrt_worker"])
def test_what_runs_beside_tensorrt_is_python_3_10(name):
    ast.parse((ROOT / "export" / f"{name}.py").read_text(), feature_version=(3, 10))


def test_profile_reads_the_specification():
    shapes = profile_shapes(Variant(resolution=672, max_batch=4, max_pairs=16).decoder)
    assert shapes["fpn_2"] == ((1, 256, 48, 48), (4, 256, 48, 48), (4, 256, 48, 48))
    assert shapes["image_index"] == ((1,), (16,), (16,))
    assert shapes["prompt_features"] == ((1, 32, 256), (16, 32, 256), (16, 41, 256))
    assert shapes.keys() == {t.name for t in Variant().decoder.inputs}


def test_inspector_is_summarised():
    layers = [
        {"LayerType": "Convolution", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
        {"LayerType": "Myelin", "Outputs": [{"Format/Datatype": "Half"}, {"Format/Datatype": "Float"}]},
        {"LayerType": "Myelin", "Outputs": []},
    ]
    assert summarise(layers) == {"layer_types": {"Myelin": 2, "Convolution": 1}, "precisions": {"FP16": 1, "Half": 1}}


@pytest.mark.gpu
@pytest.mark.skipif("SAM3_TENSORRT_PYTHON" not in os.environ, reason="SAM3_TENSORRT_PYTHON names no Python with TensorRT")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_plans_pass_the_gate_run_and_tell_their_times(source, tmp_path, precision):
    from export.frames import drawn_frames
    from export.repository import export_variant
    from export.tensorrt_host import open_plan

    settings = TensorRT(level=1, cache=str(tmp_path / "timings"))
    variant = Variant(126, 20, precision, max_batch=2, max_pairs=8, checkpoint=source.record)
    written = export_variant(source, variant, "tensorrt", tmp_path / "repository", drawn_frames(2, 126), tensorrt=settings)
    assert {entry.state for entry in written} == {"built"}
    assert list((tmp_path / "timings").iterdir())
    again = export_variant(source, variant, "tensorrt", tmp_path / "repository", drawn_frames(2, 126), tensorrt=settings)
    assert {entry.state for entry in again} == {"kept"}
    with open_plan(tmp_path / "repository" / "sam3_text_encoder" / "1" / "model.plan", settings) as plan:
        ids = np.random.default_rng(0).integers(8, 60, (4, 32), np.int32)
        timed = plan.time({"input_ids": ids})
        assert 0 < timed["spread_ms"][0] <= timed["ms"] <= timed["spread_ms"][1]
        assert plan.facts["built_for"] == settings.about()
        with pytest.raises(PlanError, match="outside the plan's profile"):
            plan({"input_ids": np.ones((9, 32), np.int32)})
        assert len(plan.profile({"input_ids": ids})) > 1
