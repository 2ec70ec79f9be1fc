"""Films and models are made once; a failed step names its command."""

import json

import pytest

from clients.fleet.config import read_config
from demo import steps
from demo.__main__ import main


@pytest.fixture
def calls(monkeypatch):
    """Records the commands instead of running them."""
    made = []
    monkeypatch.setattr(steps, "run", lambda *words: made.append(words))
    return made


def test_films_are_drawn_once(tmp_path, calls):
    for i in range(2):
        (tmp_path / f"camera_{i + 1}.json").write_text(json.dumps({"classes": [f"thing {i}"]}))
    made = steps.films(tmp_path, 2, 10, "640x360", 1)
    assert [film.classes for film in made] == [["thing 0"], ["thing 1"]]
    assert made[1].name == "camera 2"
    steps.films(tmp_path, 2, 10, "640x360", 1)
    assert len(calls) == 1
    steps.films(tmp_path, 2, 20, "640x360", 1)
    assert len(calls) == 2
    assert calls[1][calls[1].index("--frames") + 1] == "20"


def test_the_films_as_cameras(tmp_path):
    films = [steps.Film(f"camera {i}", tmp_path / f"{i}.mp4", {"classes": [f"thing {i}", "thing"]}) for i in range(2)]
    config = read_config(steps.configuration(films, "sam3_r252", tmp_path))
    assert [(c.name, c.source, list(c.classes)) for c in config.cameras] == [
        (f.name, str(f.video), f.classes) for f in films
    ]
    assert all(c.realtime and c.loop and c.track and c.model == "sam3_r252" for c in config.cameras)
    assert read_config(steps.configuration(films, None, tmp_path)).cameras[0].model is None


def test_missing_checkpoint(tmp_path):
    with pytest.raises(steps.DemoError, match="no checkpoint"):
        steps.repository(tmp_path / "repository", tmp_path / "nothing", 252, 50)


def test_a_failed_command_is_named():
    with pytest.raises(steps.DemoError, match=r"python -m json\.tool nowhere"):
        steps.run("json.tool", "nowhere")


def test_output_that_is_not_json():
    assert steps.run("calendar", "2026", "1") == {}  # its last line is not JSON


def test_the_command_reports_a_failed_step(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise steps.DemoError("no films today")

    monkeypatch.setattr(steps, "films", fail)
    assert main(["--output", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "no films today" in output.err
    assert json.loads(output.out.strip().splitlines()[-1]) == {"error": "no films today"}
