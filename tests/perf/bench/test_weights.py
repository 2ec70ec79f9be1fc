"""`sam3-perf bench weights`: rows of several runs and machines are kept apart, and what cannot be measured is a
sentence."""

from __future__ import annotations

import json

import pytest

from perf.bench.weights import cli, rows
from perf.bench.weights.exported import rows_of_exported
from perf.bench.weights.schemes import size_mb


def test_rows_of_the_same_scheme_resolution_and_machine_are_replaced():
    old = [
        {"scheme": "fp32", "resolution": 252, "cpu_ms": 9.0},
        {"scheme": "fp32", "resolution": 252, "gpu": "NVIDIA H100"},
        {"scheme": "fp32", "resolution": 140, "cpu_ms": 4.0},
    ]
    new = [{"scheme": "fp32", "resolution": 252, "cpu_ms": 8.0}, {"scheme": "fp32", "resolution": 252, "gpu": "H200"}]
    assert rows.merged(old, new) == [new[0], old[1], old[2], new[1]]


def test_speed_ups_are_beside_the_same_runtime_at_the_same_resolution():
    base = {"fp32": 8, "half fp16": 4, "onnxruntime fp32": 6, "int8": 3}
    times = [{"scheme": n, "resolution": r, "cpu_ms": t * r} for r in (1, 2) for n, t in base.items()]
    times.append({"scheme": "fp8", "resolution": 1})
    found = rows.with_speedups(times, {"int8": "onnxruntime fp32"})
    assert [row.get("cpu_speedup") for row in found] == [1.0, 2.0, 1.33, 2.0] * 2 + [None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "folder"], "expected NAME=FOLDER with a name of its own, got 'folder'"),
        (["--checkpoint", "fp32=folder"], "with a name of its own, got 'fp32=folder'"),
        (["--checkpoint", "fast=nowhere"], "found none in nowhere; write one with sam3-slim"),
        (["--scenes", "0"], "scenes and processes must be 1 or more, got 0 and 1"),
        (["--resolution", "250"], "resolution must be a multiple of 14, got 250"),
    ],
)
def test_what_cannot_be_used_is_refused_before_work_begins(words, said, tmp_path, capsys):
    assert cli.main([*words, "--output", str(tmp_path / "weights.json")]) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "weights.json").exists()


def test_another_file_is_not_merged_with(tmp_path, capsys):
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"machine": {}, "rows": [{"fps": 3}]}))
    assert cli.main(["--output", str(path)]) == 2
    assert "holds something else; name another" in json.loads(capsys.readouterr().out)["error"]


def test_an_exported_scheme_is_measured_on_processors(tmp_path):
    with pytest.raises(ValueError, match="expected --device cpu for int8, which onnxruntime computes, got cuda"):
        rows_of_exported("int8", [140], 1, "cuda", tmp_path)


def test_the_size_is_that_of_the_weights(checkpoint):
    assert size_mb(checkpoint) == (checkpoint / "model.safetensors").stat().st_size / 2**20
