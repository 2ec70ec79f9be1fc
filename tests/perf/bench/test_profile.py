"""`sam3-perf profile` on the small checkpoint's own ONNX files, and the sentences where there is nothing to profile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ensemble import pbtxt
from ensemble.records import Axis, ModelSpec, TensorSpec
from ensemble.spec import ENGINES, Variant
from export.engines.aoti import build_package
from perf.bench.profile import aoti as profile_aoti
from perf.bench.profile import bounds
from perf.bench.profile import cli as profile
from perf.bench.profile import onnx as profile_onnx


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict]:
    """Exit status and the JSON of the last line of standard output."""
    status = profile.main(argv)
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.server  # not the server itself, but the repository that is exported for it
def test_stages_kernels_and_a_trace(repository: Path, tmp_path: Path, capsys):
    argv = ["--repository", str(repository), "--resolution", "140", "--classes", "2", "--rounds", "2"]
    status, found = run(capsys, *argv, "--output", str(tmp_path))
    assert status == 0, found
    stages = {row["stage"]: row for row in found["stages"]}
    assert {"decode", "text", "vision", "decoder", "masks"} <= set(stages)
    assert all(0 < stages[name]["of_bound"] < 1 for name in ("text", "vision", "decoder")), (
        "nothing is faster than this machine"
    )
    parts = {row["part"] for row in json.loads((tmp_path / "profile.json").read_text())["kernels"]}
    assert {"vision_encoder", "text_encoder", "decoder", "mask_head"} <= parts
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in trace if e["name"] == "process_name"} == parts
    runs = [e for e in trace if e["name"] == "model_run" and e["pid"] == 0]
    assert len(runs) == 2, "the round that warms up is not in the trace"
    assert {p.name for p in tmp_path.iterdir()} == {"profile.json", "trace.json"}


def test_kernels_are_summed_by_kind_and_divided_by_round():
    def node(ts: int, kind: str, duration: int) -> dict:
        return {"cat": "Node", "name": f"/{kind}_kernel_time", "ts": ts, "dur": duration, "args": {"op_name": kind}}

    events = [{"name": "model_run", "ts": 0}, node(1, "MatMul", 3000), node(2, "MatMul", 1000), node(3, "Pad", 500)]
    events += [
        {"name": "model_run", "ts": 10},
        node(11, "MatMul", 4000),
        node(12, "MatMul", 2000),
        node(13, "Pad", 500),
    ]
    assert profile_onnx.kernels({"decoder": events}, rounds=2) == [
        {"part": "decoder", "kernel": "MatMul", "ms": 5.0, "launches": 2, "limit": "arithmetic"},
        {"part": "decoder", "kernel": "Pad", "ms": 0.5, "launches": 1, "limit": "memory"},
    ]


@pytest.mark.parametrize(
    ("resolutions", "argv", "sentence"),
    [
        pytest.param([], [], "found no sam3_r.*/config.pbtxt; write one with sam3-export", id="no repository"),
        pytest.param([140, 252], [], r"\(140, 252\), got None; say which", id="several resolutions"),
        pytest.param([140], ["--resolution", "672"], r"\(140\), got 672", id="not there"),
        pytest.param(
            [140], [], r"model.onnx, found no such file; write it with sam3-export --engine onnxruntime", id="not built"
        ),
        pytest.param([140], ["--frames", "9"], r"frames must be 1 to 8 .*, got 9", id="too many frames"),
    ],
)
def test_refusals(tmp_path: Path, capsys, resolutions, argv, sentence):
    for resolution in resolutions:
        variant = Variant(resolution=resolution)
        for model in (*variant.sub_models, variant.front):
            pbtxt.write(model, variant, "onnxruntime", tmp_path)
    status, found = run(capsys, "--repository", str(tmp_path), *argv, "--output", str(tmp_path / "out"))
    assert status == 2
    assert re.search(sentence, found["error"])


@pytest.mark.parametrize(
    ("engine", "argv", "sentence"),
    [
        pytest.param("tensorrt", [], "on a GPU), got tensorrt", id="a plan"),
        pytest.param("onnxruntime", ["--nvtx"], "got onnxruntime for Nsight Systems", id="no GPU to watch"),
        pytest.param("onnxruntime", ["--device", "cuda"], "got onnxruntime on a GPU", id="ONNX Runtime on a GPU"),
        pytest.param(
            "aoti", ["--nvtx", "--device", "cpu"], "got aoti for Nsight Systems", id="Nsight Systems without a GPU"
        ),
    ],
)
def test_engines_that_it_cannot_watch(tmp_path: Path, capsys, engine, argv, sentence):
    variant = Variant(resolution=140)
    for model in (*variant.sub_models, variant.front):
        (pbtxt.write(model, variant, engine, tmp_path) / "1" / ENGINES[engine].artifact).touch()
    status, found = run(capsys, "--repository", str(tmp_path), *argv, "--output", str(tmp_path / "out"))
    assert status == 2
    assert sentence in found["error"]


class ConvolutionAndSine(torch.nn.Module):
    """A convolution, which PyTorch computes, and a loop that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.convolution(x)).relu()


def test_packages_under_pytorchs_profiler(tmp_path: Path):
    """A package compiled for the CPU: warm-up is left out, operators and compiled loops add up to the part, the trace
    has the stage's range."""
    rows = Axis("rows", 1, 4, 4)
    record = ModelSpec(
        "small", "decoder", (TensorSpec("x", "FP32", (rows, 8, 66, 66)),), (TensorSpec("y", "FP32", (rows, 8, 64, 64)),)
    )
    (tmp_path / "small" / "1").mkdir(parents=True)
    build_package(ConvolutionAndSine(), record, tmp_path / "small" / "1" / "model.pt2", device="cpu")
    packages = profile_aoti.AotiPackages(tmp_path, "cpu", nvtx=False)
    x = np.ones((4, 8, 66, 66), np.float32)
    packages(record, {"x": x}, ["y"])
    packages.warm()
    for _ in range(3):
        with packages.annotate("decoder"):
            found = packages(record, {"x": x}, ["y"])
    assert found["y"].shape == (4, 8, 64, 64)
    table = packages.finish(tmp_path / "trace.json", rounds=3)
    assert {row["part"] for row in table} == {"decoder"}
    named = {row["kernel"]: row for row in table}
    product = named["aten::_convolution"]
    assert (product["launches"], product["limit"]) == (1, "arithmetic")
    assert named[profile_aoti.COMPILED]["launches"] == 1
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len([e for e in events if e.get("name") == "decoder"]) == 3
    assert len([e for e in events if e.get("name") == "part: decoder"]) == 3, "the call that warmed up is not in it"
    assert packages.ceilings()["gflop_s"] > 0


def test_what_binds_a_stage():
    """100 GFLOP at 1 TFLOP/s are 100 ms, 10e9 bytes at 1,000 GB/s are 10 ms: arithmetic binds, and half of it was
    reached in 200 ms."""
    limits = {"gflop_s": 1_000.0, "copy_gb_s": 1_000.0}
    rows = bounds.bounds(
        {"vision": 200.0, "text": 4.0, "pack": 1.0},
        {"vision": 100.0, "text": 1.0},
        {"vision": 1e10, "text": 2e9},
        limits,
    )
    vision, text, pack = rows
    assert (vision["bound"], vision["arithmetic_ms"], vision["memory_ms"], vision["of_bound"]) == (
        "arithmetic",
        100.0,
        10.0,
        0.5,
    )
    assert (text["bound"], text["of_bound"]) == ("memory", 0.5)
    assert vision["mb"] == pytest.approx(1e10 / 2**20, abs=0.1)
    assert pack == {"stage": "pack", "ms": 1.0}
