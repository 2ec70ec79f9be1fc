"""Plans in processes of their own: messages, environment, a process that dies; on a GPU with TensorRT, plans that pass
the gate."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ensemble.spec import Variant
from export.engines.tensorrt import wire
from export.engines.tensorrt.engine import ENGINE
from export.engines.tensorrt.host import PlanProcess, build_plan, open_plan
from export.engines.tensorrt.network import PlanError, profile_shapes, summarise
from export.engines.tensorrt.settings import ROOT, TensorRT, child_environment
from export.engines.tensorrt.version import version_of
from export.engines.tensorrt.wire import Array, WireError
from export.gate.frames import drawn_frames
from export.sub_models.parts import Style, make_part
from export.variant import Job, export_variant

STAND_IN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from export.engines.onnxruntime import onnx_session
from ensemble.records import NUMPY_DTYPES
from export.engines.tensorrt.host import DTYPE_NAMES
from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.worker import serve
from export.engines.tensorrt.wire import Array

class Runner:
    facts = {"runner": "onnxruntime"}
    def __init__(self, path): self.session = onnx_session(path, 1)
    def run(self, inputs):
        if inputs["input_ids"].shape[1] != 32: raise PlanError("input_ids is outside the profile")
        if np.frombuffer(inputs["input_ids"].data, np.int32).max() == 7: sys.exit("out of memory")
        arrays = {n: np.frombuffer(a.data, NUMPY_DTYPES[a.dtype]).reshape(a.shape) for n, a in inputs.items()}
        found = self.session(arrays).items()
        return {n: Array(DTYPE_NAMES[a.dtype], a.shape, bytearray(a.tobytes())) for n, a in found}

serve(Runner(Path(sys.argv[2])), sys.stdin.buffer, sys.stdout.buffer)
"""
"""ONNX Runtime behind the worker's own loop, in a process as the plan's would be."""


@pytest.fixture(scope="module")
def text_encoder(exported) -> Path:
    return exported(112).root / "sam3_text_encoder" / "1" / "model.onnx"


@pytest.fixture(scope="module")
def command(text_encoder) -> list[str]:
    return [sys.executable, "-c", STAND_IN, str(ROOT), str(text_encoder)]


@pytest.fixture(scope="module")
def process(command):
    """One for all tests that leave it as it was: its start takes seconds."""
    with PlanProcess(command) as process:
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


def test_a_process_that_ends_is_an_error_with_its_last_lines(command):
    with (
        PlanProcess(command) as process,
        pytest.raises(PlanError, match="ended with status 1; it said last: out of memory"),
    ):
        process({"input_ids": np.full((1, 32), 7, np.int32)})


def test_a_process_that_never_starts_is_an_error_with_its_last_lines():
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
        pytest.param(b"Segmentation fault\n", "expected a line of JSON", id="not JSON"),
        pytest.param(
            b'{"tensors": [{"name": "a", "dtype": "FP32", "shape": [2]}]}\n1234',
            "expected 8 bytes of a, .* after 4",
            id="cut off",
        ),
    ],
)
def test_what_is_not_a_message_is_refused(sent, sentence):
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
    """An interpreter without site packages, started in another folder, gets as far as importing TensorRT."""
    command = TensorRT().command("about")
    done = subprocess.run([command[0], "-I", "-S", *command[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No module named 'tensorrt'" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "export/engines/tensorrt").glob("*.py")), ids=lambda path: path.stem)
def test_what_runs_beside_tensorrt_is_python_3_10(path):
    ast.parse(path.read_text(), feature_version=(3, 10))


@pytest.mark.parametrize("number", ["7.2.3", "8.5.1", "9.3.0.post11.dev1", "10.0.1", "12.0.0.1"])
def test_a_version_that_this_was_not_written_for_is_refused(number):
    with pytest.raises(PlanError, match=rf"expected TensorRT 10\.1 to 11, got {number}"):
        version_of(number)


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


with_tensorrt = pytest.mark.skipif(
    "SAM3_TENSORRT_PYTHON" not in os.environ, reason="SAM3_TENSORRT_PYTHON names no Python with TensorRT"
)


@pytest.mark.gpu
@with_tensorrt
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_plan_of_the_text_encoder(source, sized, tmp_path, precision):
    """Built, opened, asked, timed and profiled; TensorRT of any version."""
    settings = TensorRT(level=1, cache=str(tmp_path / "timings"))
    variant = Variant(126, 20, precision, max_pairs=8, checkpoint=source.record)
    module = make_part("text_encoder", sized(126), ENGINE.style, precision)
    facts = build_plan(module, variant.text_encoder, variant, tmp_path / "model.plan", settings)
    assert facts["built_for"] == settings.about()
    assert [path.name for path in tmp_path.glob("model*")] == ["model.plan"]  # the graph is gone
    ids = np.random.default_rng(0).integers(8, 60, (4, 32), np.int32)
    wanted = make_part("text_encoder", sized(126), Style("explicit", "plain"), "fp32")(torch.from_numpy(ids)).numpy()
    with open_plan(tmp_path / "model.plan", settings) as plan:
        for _ in range(20):  # each time: inputs are on the GPU before the plan reads them
            found = plan({"input_ids": ids})["text_features"].astype(np.float32)
            assert np.abs(found - wanted).max() < (1e-4 if precision == "fp32" else 0.05) * np.abs(wanted).max()
        timed = plan.time({"input_ids": ids})
        assert 0 < timed["spread_ms"][0] <= timed["ms"] <= timed["spread_ms"][1]
        with pytest.raises(PlanError, match="outside the plan's profile"):
            plan({"input_ids": np.ones((9, 32), np.int32)})
        assert len(plan.profile({"input_ids": ids})) > 0


@pytest.mark.gpu
@with_tensorrt
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_plans_pass_the_gate_and_are_kept(source, tmp_path, precision):
    settings = TensorRT(level=1, cache=str(tmp_path / "timings"))
    if settings.about()["tensorrt"].startswith("8."):
        pytest.skip("TensorRT 8.6.0 cannot build the geometry encoder")
    variant = Variant(126, 20, precision, max_batch=2, max_pairs=8, checkpoint=source.record)
    for state in ("built", "kept"):
        job = Job(source, variant, "tensorrt", tmp_path / "repository", drawn_frames(2, 126), tensorrt=settings)
        written = export_variant(job)
        assert {entry.state for entry in written} == {state}
    assert list((tmp_path / "timings").iterdir())
