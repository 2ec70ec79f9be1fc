"""`sam3-perf simulate` from the command line."""

from __future__ import annotations

import json
from functools import partial

import pytest

from perf.cli import main
from perf.scale import study
from perf.scale.response import respond


def test_a_day_is_simulated_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "respond", partial(respond, seconds=3.0))  # quick and less exact
    output, plot = tmp_path / "scale.json", tmp_path / "scale.png"
    assert main(["simulate", "--cameras", "4", "40", "--days", "1", "--output", str(output), "--plot", str(plot)]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert data == json.loads(output.read_text())
    assert data["rows"][0]["settings"] == "chosen"
    assert all(0 <= row["dropped_percent"] <= 100 for row in data["rows"])
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--cameras", "9", "3"], "cameras by day >= cameras at night", id="fewer by day"),
        pytest.param(["--days", "0"], "days > 0", id="no day"),
        pytest.param(["--resolution", "1000"], "sam3-perf bench end-to-end", id="not measured"),
        pytest.param(["--server", "nowhere.json"], "cannot read nowhere.json", id="no such file"),
    ],
)
def test_what_cannot_be_simulated_is_said(options, message, capsys):
    assert main(["simulate", *options]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]
