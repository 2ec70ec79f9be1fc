"""`sam3-perf bench weights`: rows of several runs and machines are kept apart, and what cannot be measured is a
sentence."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from export.slim import figures
from export.tiny.evaluate import cases_of
from export.tiny.predictor import Detections
from perf.bench.weights import cli, probe, rows
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


def test_a_row_without_accuracy_leaves_an_earlier_ones_there():
    old = {"scheme": "fp32", "resolution": 252, "box_ap": 0.7, "cpu_ms": 9.0, "measured": {"date": "a"}}
    new = {"scheme": "fp32", "resolution": 252, "cpu_ms": 8.0, "timed": {"date": "b"}}
    assert rows.merged([old], [new]) == [old | new]
    assert rows.merged([], [new]) == [new]


def test_time_on_a_busy_machine_is_processor_time(monkeypatch, tmp_path):
    answer = json.dumps({"load_s": 1.0, "memory_mb": 2.0, "ms": 900.0, "core_ms": 300.0, "load": 999.0})
    monkeypatch.setattr(probe.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout=answer))
    found = probe.measured("fp32", tmp_path, 252, "cpu")
    assert found == {"load_s": 1.0, "memory_mb": 2.0, "core_ms": 300.0, "load": 999.0}
    assert probe.measured("fp32", tmp_path, 252, "cuda")["ms"] == 900.0


def test_speed_ups_are_beside_the_same_runtime_at_the_same_resolution():
    base = {"fp32": 8, "half fp16": 4, "onnxruntime fp32": 6, "int8": 3}
    times = [{"scheme": n, "resolution": r, "core_ms": t * r} for r in (1, 2) for n, t in base.items()]
    times.append({"scheme": "fp8", "resolution": 1})
    times.append({"scheme": "stripped", "resolution": 1, "core_ms": 4, "measured": {"machine": {"cores": 64}}})
    found = rows.with_speedups(times, {"int8": "onnxruntime fp32"})
    assert [row.get("cpu_speedup") for row in found] == [1.0, 2.0, 1.33, 2.0] * 2 + [None] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "folder"], "expected NAME=FOLDER with a name of its own, got 'folder'"),
        (["--checkpoint", "fp32=folder"], "with a name of its own, got 'fp32=folder'"),
        (["--checkpoint", "fast=nowhere"], "found none in nowhere; write one with sam3-slim"),
        (["--scenes", "-1"], "scenes must be 0 or more and processes 1, got -1 and 1"),
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
        next(rows_of_exported("int8", [140], 1, "cuda", tmp_path))


def test_the_size_is_that_of_the_weights(checkpoint):
    assert size_mb(checkpoint) == (checkpoint / "model.safetensors").stat().st_size / 2**20


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    def cut_off(*_):
        yield {"scheme": "fp32", "resolution": 252, "box_ap": 0.7}
        yield {"scheme": "fp32", "resolution": 252, "box_ap": 0.7, "cpu_ms": 8.0}
        yield {"scheme": "fp8", "resolution": 252, "box_ap": 0.6}
        raise KeyboardInterrupt

    path = tmp_path / "weights.json"
    rows_before = [{"scheme": "int8", "resolution": 140, "box_ap": 0.5}]
    path.write_text(json.dumps({"machine": {}, "rows": rows_before}))
    monkeypatch.setattr(cli, "measure", cut_off)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["--output", str(path)])
    found = json.loads(path.read_text())["rows"]
    assert [(row["scheme"], row.get("cpu_ms")) for row in found] == [("int8", None), ("fp32", 8.0), ("fp8", None)]
    assert all("measured" in row for row in found[1:])


def test_masks_are_judged_as_a_client_gets_them_and_as_logits(monkeypatch):
    monkeypatch.setattr(figures, "load_model", lambda folder, resolution, device: (resolution,))
    cases = list(cases_of([7]))
    monkeypatch.setattr(figures, "_cases", cases)

    def answers(frame, prompts):
        logits = np.full((1, 6, 6), -8.0, np.float32)
        logits[:, 1:5, 1:5] = 1.0
        box = np.array([[0.0, 0.0, 1.0, 1.0]])
        return [Detections(np.array([0.9]), box, logits, 1.0) for _ in prompts]

    seen = []
    monkeypatch.setattr(figures, "Judge", lambda: Noted(seen))
    row = figures._row(("fp32", None, 140, "cpu", lambda *_: answers))
    assert (row["mask_ap"], row["logits_mask_ap"], row["stands_for"]) == (0.25, 1.0, 560)
    assert {found.masks.dtype.kind for found in seen[0]} == {"f"}
    assert {found.masks.dtype.kind for found in seen[1]} == {"b"}
    assert all((bits.masks == (logits.masks > 0)).all() for logits, bits in zip(*seen, strict=True))


class Noted:
    """A judge that keeps what it is given; it says 1.0 of the first, 0.25 of the second."""

    def __init__(self, seen):
        self.value, self.answers = (0.25 if seen else 1.0), []
        seen.append(self.answers)

    def add(self, case, answers):
        self.answers += answers

    def figures(self):
        figures = dict.fromkeys(("AP", "AP50", "APs", "APm", "APl"), self.value)
        kinds = {"box": figures, "mask": figures, "presence_accuracy": 1.0}
        return {"text": kinds, "exemplar": kinds}
