"""The whole server beside its peers: one short run on the real server, and what ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf.bench import end_to_end, user_path
from perf.bench.user_path import load_frames, rate
from perf.sweep import inputs


@pytest.mark.server
def test_a_row_has_the_server_and_its_peer(
    repository: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.json"
    argv = ["--repository", str(repository), "--checkpoint", str(checkpoint), "--resolution", "140", "--cameras", "2"]
    argv += ["--in-flight", "1", "--classes", "2", "--device", "cpu"]
    argv += ["--requests", "4", "--seconds", "0.1", "--output", str(output)]
    assert end_to_end.main(argv) == 0
    written = json.loads(output.read_text())
    (row,), (more,) = written["rows"], written["details"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == [row]
    assert (row["engine"], row["resolution"], row["cameras"], row["classes"]) == ("onnxruntime", 140, 2, 2)
    assert row["fps"] > 0
    assert row["cosine"] > 0.999999
    assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert row["engines_fps"] is None  # only compiled packages run outside Triton
    assert row["of_transformers"] == pytest.approx(row["fps"] / row["transformers_user_path_fps"], abs=1e-3)
    assert more["stage_masks_ms"] > 0  # every class had masks
    assert more["stage_text_ms"] >= 0
    assert more["failed"] == 0


def test_a_repository_without_front_models_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_to_end.main(["--repository", str(tmp_path), "--checkpoint", "random", "--resolution", "672"]) == 2
    assert "expected resolutions of this repository (it has none), got 672" in capsys.readouterr().err


def test_rate_counts_the_frames_of_whole_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a call takes a quarter of a second."""
    now, calls = [0.0], []

    def call() -> None:
        calls.append(1)
        now[0] += 0.25

    monkeypatch.setattr(user_path.time, "perf_counter", lambda: now[0])
    assert rate(call, 8, 1.0) == 32.0
    assert len(calls) == 2 + 4, "half of the time to warm up"
    assert rate(call, 8, 0.01) == 32.0, "one call at least"


def test_peers_get_the_frames_that_the_server_gets() -> None:
    shown = inputs.pictures(2, 320, 180)
    assert [tuple(frame.shape) for frame in load_frames(shown, "cpu")] == [(3, 180, 320)] * 2
