import json

import pytest

from clients import films
from clients.video.sources import open_source

NAMES = ["purple circle", "blue circle"]


@pytest.fixture(scope="module")
def film(film_of):
    return film_of(6)


def run(capsys, *arguments):
    """Exit status, and the films' accounts."""
    status = films.main([str(a) for a in arguments])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])["films"]


def test_films_come_back_with_tracks(video_server, film, tmp_path, capsys):
    other = tmp_path / "gate.mp4"
    other.write_bytes(film.read_bytes())
    options = ("--url", video_server.grpc_url, "--detect-every", 2, "--output", tmp_path / "out")
    status, accounts = run(capsys, film, other, "--classes", *NAMES, *options)
    assert status == 0
    assert [account["frames"] for account in accounts] == [6, 6]
    assert accounts[0]["objects"] == accounts[1]["objects"] >= 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "yard.tracks.jsonl").read_text().splitlines()]
    first, last = ({d["id"] for d in line["detections"]} | set(line["hidden"]) for line in (lines[0], lines[-1]))
    assert [line["frame"] for line in lines] == list(range(6))
    assert first <= last
    assert {d["state"] for d in lines[0]["detections"]} == {"new"}
    assert all(d["mask"] for line in lines for d in line["detections"])
    with open_source(tmp_path / "out" / "yard.tracks.mp4") as source:
        assert len(list(source)) == 6


def test_one_film_that_cannot_be_read_leaves_the_others_alone(video_server, film, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    options = ("--url", video_server.grpc_url, "--output", tmp_path)
    status, accounts = run(capsys, broken, film, tmp_path / "none.mp4", "--classes", *NAMES, *options)
    assert status == 1
    assert [bool(account["error"]) for account in accounts] == [True, False, True]
    assert accounts[1]["frames"] == 6
    assert "there is no file" in accounts[2]["error"]


def test_a_server_without_videos_says_so(server, film, tmp_path, capsys):
    status, accounts = run(capsys, film, "--classes", "dog", "--url", server.grpc_url, "--output", tmp_path)
    assert (status, accounts[0]["frames"]) == (1, 0)
    assert "serves no videos; export the repository with sam3-export --video" in accounts[0]["error"]
    assert not list(tmp_path.iterdir())


def test_two_films_of_one_name_are_refused(film, tmp_path):
    with pytest.raises(SystemExit) as refused:
        films.main([str(film), str(tmp_path / "yard.mov"), "--classes", "dog"])
    assert refused.value.code == 2


def test_a_server_for_these_films_alone(video_repository, film, tmp_path, capfd):
    options = ("--repository", video_repository, "--max-objects", 4, "--output", tmp_path)
    status, accounts = run(capfd, film, "--classes", *NAMES, *options)
    assert status == 0
    assert accounts[0]["frames"] == 6
    assert accounts[0]["objects"] >= 2


def test_a_server_that_cannot_start_is_a_reason(video_repository, film, tmp_path, capfd):
    with pytest.raises(SystemExit) as refused:
        run(capfd, film, "--classes", "dog", "--memory", "4GB", "--repository", video_repository)
    assert refused.value.code == 2
    said = capfd.readouterr().err
    assert "--gpu-memory: expected models for a GPU, got a repository for the CPU; leave it out" in said
    assert "sam3-video: error: sam3-serve ended with status 1; what it says is above" in said


def test_a_running_server_is_not_given_memory(film):
    with pytest.raises(SystemExit):
        films.main([str(film), "--classes", "dog", "--memory", "4GB", "--url", "localhost:8001"])
