"""`sam3-perf peers`: transformers' model and the real server on the same frames find the same things; medians and
ratios are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble.server.embedded import EmbeddedServer
from perf.bench import peers
from perf.sweep import inputs


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict]:
    """Exit status and the JSON of the last line of standard output."""
    status = peers.main(argv)
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.server
def test_all_contestants_find_the_same(server: EmbeddedServer, checkpoint: Path, tmp_path: Path, capsys):
    addresses = ["--url", server.grpc_url, "--http-url", server.http_url]
    argv = ["--checkpoint", str(checkpoint), "--resolution", "140", "--classes", "2", "--frames", "3", "--rounds", "1"]
    status, found = run(capsys, *addresses, *argv, "--output", str(tmp_path / "peers.json"))
    assert status == 0, found
    rows = {row["who"]: row for row in found["rows"]}
    assert list(rows) == ["transformers, class by class", "transformers, vision once", "this server"]
    assert rows["transformers, class by class"]["ratio"] == 1.0
    counts = [row["objects"] for row in rows.values()]
    assert counts[0] > 0
    assert max(counts) - min(counts) <= 1, "a score may lie on the threshold"
    assert json.loads((tmp_path / "peers.json").read_text())["rows"] == found["rows"]


@pytest.mark.server
def test_a_model_that_is_not_loaded(server: EmbeddedServer, checkpoint: Path, capsys):
    argv = ["--http-url", server.http_url, "--checkpoint", str(checkpoint), "--resolution", "672"]
    status, found = run(capsys, *argv)
    assert status == 2
    assert "sam3-export --resolution 672" in found["error"]


def test_contestants_take_turns_and_the_first_is_the_measure():
    asked: list[str] = []

    def contestant(name: str, objects: int) -> peers.Contestant:
        def detect(picture: inputs.SampleFrame, names: list[str]) -> int:
            asked.append(name)
            assert len(names) == 2
            return objects

        return detect

    rows = peers.race({"a": contestant("a", 2), "b": contestant("b", 3)}, inputs.pictures(3), classes=2, rounds=2)
    assert asked == ["a", "b"] * (2 + 2 * 3), "two frames warm up, then three frames in two rounds"
    assert [(row["who"], row["objects"]) for row in rows] == [("a", 6), ("b", 9)]
    assert rows[0]["ratio"] == 1.0


def test_nothing_to_measure_is_refused(capsys):
    status, found = run(capsys, "--checkpoint", "x", "--resolution", "140", "--frames", "0")
    assert status == 2
    assert "frames must be at least 1, got 0" in found["error"]
