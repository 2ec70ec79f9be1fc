"""`sam3-perf profile` on the small checkpoint's own ONNX files, and the sentences where there is nothing to profile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from perf import profile


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict]:
    """Exit status and the JSON of the last line of standard output."""
    status = profile.main(argv)
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.server  # not the server itself, but the repository that is exported for it
def test_stages_kernels_and_a_trace(repository: Path, checkpoint: Path, tmp_path: Path, capsys):
    argv = ["--repository", str(repository), "--resolution", "140", "--classes", "2", "--rounds", "2"]
    status, found = run(capsys, *argv, "--checkpoint", str(checkpoint), "--output", str(tmp_path))
    assert status == 0, found
    assert {"decode", "text", "vision", "decoder", "masks"} <= set(found["stage_ms"])
    assert found["ceilings"]["gflop_s"] > 0
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
    events += [{"name": "model_run", "ts": 10}, node(11, "MatMul", 4000), node(12, "MatMul", 2000), node(13, "Pad", 500)]
    assert profile.kernels({"decoder": events}, rounds=2) == [
        {"part": "decoder", "kernel": "MatMul", "ms": 5.0, "launches": 2, "limit": "arithmetic"},
        {"part": "decoder", "kernel": "Pad", "ms": 0.5, "launches": 1, "limit": "memory"},
    ]


@pytest.mark.parametrize(
    ("folders", "argv", "sentence"),
    [
        pytest.param([], [], "found no sam3_r.*/config.pbtxt; write one with sam3-export", id="no repository"),
        pytest.param(["sam3_r140", "sam3_r252"], [], r"\(140, 252\), got None; say which", id="several resolutions"),
        pytest.param(["sam3_r140"], ["--resolution", "672"], r"\(140\), got 672", id="not there"),
        pytest.param(["sam3_r140"], [], "names no variant", id="a configuration of someone else's"),
    ],
)
def test_refusals(tmp_path: Path, capsys, folders, argv, sentence):
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text('name: "x"\n')
    status, found = run(capsys, "--repository", str(tmp_path), *argv)
    assert status == 2
    assert re.search(sentence, found["error"])
