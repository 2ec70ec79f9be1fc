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


def test_the_occluded_film_is_drawn_once(tmp_path, calls):
    (tmp_path / "followed.json").write_text(json.dumps({"classes": ["thing"], "frames": [[], []]}))
    for _ in range(2):
        film = steps.occluded_film(tmp_path, "640x360", 1)
    assert (film.name, film.video, film.count) == ("followed", tmp_path / "followed.mp4", 2)
    assert [call[0] for call in calls] == ["demo.occlusion"]
    steps.films(tmp_path, 0, 10, "640x360", 1)
    assert len(calls) == 2  # each has a stamp of its own


def test_the_followed_film_as_a_camera(tmp_path):
    one, other = (steps.Film(name, tmp_path / f"{name}.mp4", {"classes": ["thing"]}) for name in ("one", "followed"))
    config = read_config(steps.configuration([one], "sam3_r252", tmp_path, other, "sam3_video_r252"))
    assert [(c.name, c.track, c.model) for c in config.cameras] == [
        ("one", "boxes", "sam3_r252"),
        ("followed", "masks", "sam3_video_r252"),
    ]
    assert config.cameras[1].detect_every == steps.DETECT_EVERY


@pytest.mark.parametrize("video", [True, False])
def test_the_tracker_is_exported_where_it_is_wanted(tmp_path, monkeypatch, checkpoint, video):
    made = []
    monkeypatch.setattr(steps, "run", lambda *words: made.append(words) or {"front": ["sam3_r252"]})
    assert steps.repository(tmp_path, checkpoint, 252, 50, video) == "sam3_r252"
    assert ("--video" in made[0]) is video


def test_which_checkpoints_have_a_tracker(tmp_path, checkpoint):
    assert steps.has_tracker(checkpoint)
    assert not steps.has_tracker(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "sam3"}')
    assert not steps.has_tracker(tmp_path)


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
