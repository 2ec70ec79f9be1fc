"""Outputs that fail: each copes or stops, is counted and named, and no camera notices."""

import asyncio
import json
import os
import shutil
import threading
from dataclasses import replace

import av
import numpy as np
import pytest

from clients import camera as command
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.fleet import run_fleet
from clients.fleet.request import Answer
from clients.outputs.outputs import Outputs
from clients.video.reader import CapturedFrame
from tests.clients.answering import answering

YARD = CameraConfig("yard", "none", ("blue square", "red circle"), (0.5, 0.5), fps=10)
NOISE = np.random.default_rng(0).integers(0, 255, (8, 64, 96, 3), np.uint8)


async def written(path, detections, between=lambda i: None, pictures=NOISE):
    """The account of one file that gets each picture, with `between(i)` before the i-th."""
    outputs = Outputs([Camera(replace(YARD, outputs=(path,)))])
    camera = Camera(replace(YARD, outputs=(path,)))
    await outputs.open()
    for i, picture in enumerate(pictures):
        between(i)
        frame = CapturedFrame(i, i / 10, picture, 0.0, 0, b"")
        await outputs(camera, Answer(frame, "answered", 1.0, detections(i % 3)))
    (account,) = (await outputs.close())["outputs"]
    assert account["written"] + account["lost"] == len(pictures)
    assert account["output"] == str(path)
    return account


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.mp4"])
async def test_a_full_disk(name, tmp_path, detections):
    (tmp_path / name).symlink_to("/dev/full")
    account = await written(tmp_path / name, detections)
    assert "No space left on device" in account["error"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.mp4", "a.png"])
async def test_a_folder_that_cannot_be_made(name, tmp_path, detections):
    (tmp_path / "out").write_text("a file where a folder should be")
    account = await written(tmp_path / "out" / name, detections)
    assert account["written"] <= 5  # a picture that is not better than the last one is not saved
    assert account["lost"] >= 2
    assert "out" in account["error"]


@pytest.mark.parametrize(("name", "copes"), [("a.jsonl", True), ("a.png", True), ("a.json", False), ("a.mp4", False)])
async def test_a_folder_that_is_deleted_meanwhile(name, copes, tmp_path, detections, monkeypatch):
    monkeypatch.setattr("clients.video.encode.H264_OPTIONS", {"preset": "ultrafast", "tune": "zerolatency"})
    path = tmp_path / "out" / name

    def between(i):
        if i == 2:
            shutil.rmtree(path.parent)

    account = await written(path, detections, between)
    if copes:
        assert account["lost"] == 0
        assert path.exists()
        assert name != "a.jsonl" or [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [
            *range(2, 8)
        ]
    else:
        assert "was deleted while it was written" in account["error"]
        assert account["lost"] == 6


async def test_a_disk_that_has_room_again(tmp_path, detections):
    path = tmp_path / "a.jsonl"

    def between(i):
        if i == 2:
            path.unlink()
            path.symlink_to("/dev/full")
        elif i == 5:
            path.unlink()

    account = await written(path, detections, between)
    assert (account["written"], account["lost"]) == (5, 3)
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [5, 6, 7]


async def test_a_pipe_that_nobody_reads(tmp_path, detections):
    os.mkfifo(tmp_path / "a.jsonl")
    account = await written(tmp_path / "a.jsonl", detections)
    assert account["lost"] == 8
    assert "No such device" in account["error"]


async def test_a_pipe_whose_reader_has_gone(tmp_path, detections):
    os.mkfifo(tmp_path / "a.jsonl")
    reader = os.open(tmp_path / "a.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    account = await written(tmp_path / "a.jsonl", detections, lambda i: i == 3 and os.close(reader))
    assert (account["written"], account["lost"]) == (3, 5)
    assert "Broken pipe" in account["error"]


async def test_a_pipe_whose_reader_sleeps(tmp_path, detections, monkeypatch):
    """What hangs costs one wait, not one for each frame."""
    monkeypatch.setattr("clients.outputs.output.PATIENCE_S", 0.3)
    path = tmp_path / "a.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        account = await written(path, detections, pictures=np.zeros((400, 8, 8, 3), np.uint8))
    finally:
        threading.Thread(target=_drain, args=(reader,), daemon=True).start()
    assert account["lost"] > 100
    assert "does not take what is written" in account["error"]


def _drain(reader):
    os.set_blocking(reader, True)
    while os.read(reader, 1 << 16):
        pass
    os.close(reader)


@pytest.mark.parametrize("size", [(128, 192), (32, 200), (65, 97)], ids=str)
async def test_a_camera_that_changes_its_size(size, tmp_path, detections):
    """The video goes on at its first size, the picture within black bars."""
    path = tmp_path / "a.mp4"
    pictures = [np.full((64, 96, 3), 100, np.uint8)] * 3 + [np.full((*size, 3), 200, np.uint8)] * 3
    account = await written(path, detections, pictures=pictures)
    assert account == {"output": str(path), "written": 6, "lost": 0}
    with av.open(str(path)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 6
    assert abs(int(frames[3][32, 48, 1]) - 200) < 8


def _raises(camera, answer):
    raise ZeroDivisionError("rtsp://admin:Tr0ub4dor@host/1 by zero")


async def _raises_later(camera, answer):
    await asyncio.sleep(0)
    _raises(camera, answer)


@pytest.mark.parametrize("handler", [_raises, _raises_later])
async def test_a_callback_that_raises(handler, film, detections, caplog):
    """A user's own handler fails for one camera; both cameras get all their frames."""
    cameras = [Camera(replace(YARD, name=name, source=str(film), fps=None)) for name in ("yard", "gate")]
    handled = []

    def handle(camera, answer):
        handled.append(camera.config.name)
        return handler(camera, answer) if camera is cameras[0] else None

    summary = await run_fleet(cameras, answering(detections()), handle, asyncio.Event())
    yard, gate = summary["each"]
    assert (yard["answered"], gate["answered"]) == (6, 6)
    assert handled.count("yard") == handled.count("gate") == 6
    assert yard["unhandled"] == summary["unhandled"] == 6
    assert yard["handler_error"].startswith("ZeroDivisionError: rtsp://host/1 by zero (test_failures.py:")
    assert "unhandled" not in gate
    assert sum("was not handled" in message for message in caplog.messages) == 1
    assert "Tr0ub4dor" not in caplog.text


async def test_zones_that_fail(film, detections, monkeypatch):
    camera = Camera(replace(YARD, source=str(film), fps=None, track=True))
    monkeypatch.setattr(camera._tracker, "update", lambda found: 1 / 0)
    answers = []
    summary = await run_fleet([camera], answering(detections()), lambda _, a: answers.append(a), asyncio.Event())
    assert len(answers) == summary["answered"] == summary["unhandled"] == 6
    assert not answers[0].tracks


async def test_an_answer_that_makes_no_sense(film, detections):
    """The server names a class that was not asked for."""
    camera = Camera(replace(YARD, source=str(film), fps=None))
    other = Camera(
        replace(YARD, name="gate", source=str(film), fps=None, classes=("a", "b", "c"), thresholds=(0.1,) * 3)
    )
    found = replace(detections(), class_ids=np.array([2, 2], np.int32), classes=("a", "b", "c"))
    summary = await run_fleet([camera, other], answering(found), lambda *_: None, asyncio.Event())
    assert [each["answered"] for each in summary["each"]] == [0, 6]
    assert summary["failed_by"] == {"client_error": 6}


async def test_a_callback_that_hangs_does_not_hold_up_the_end(film, detections, monkeypatch):
    monkeypatch.setattr("clients.fleet.camera.GRACE_S", 0.2)
    camera, stop = Camera(replace(YARD, source=str(film), fps=None)), asyncio.Event()

    async def hang(camera, answer):
        stop.set()
        await asyncio.sleep(1e6)

    summary = await run_fleet([camera], answering(detections()), hang, stop)
    each = summary["each"][0]
    assert each["read"] == each["answered"] + sum(each["dropped"].values())
    assert "did not return" in each["handler_error"]


def test_the_command_names_what_was_not_written(film, tmp_path, detections, monkeypatch, capsys):
    """Two cameras of which one writes to a full disk: all frames are answered, the account says what is missing."""
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    (tmp_path / "cameras.yaml").write_text(
        "cameras:\n"
        f"- {{name: full, source: {film}, classes: [a, b], output: full.jsonl}}\n"
        f"- {{name: good, source: {film}, classes: [a, b], output: good.jsonl}}\n"
    )
    monkeypatch.setattr(command, "open_pool", lambda _: answering(detections()))
    assert command.main(["--config", str(tmp_path / "cameras.yaml")]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    account = json.loads(last)
    assert [each["answered"] for each in account["each"]] == [6, 6]
    full, good = account["outputs"]
    assert (full["written"], full["lost"], good["written"], good["lost"]) == (0, 6, 6, 0)
    assert any("full.jsonl: 6 lost; " in line and "No space left" in line for line in lines)


def test_one_camera_refuses_an_output_that_cannot_be_opened(film, tmp_path, detections, monkeypatch, capsys):
    (tmp_path / "out").write_text("")
    monkeypatch.setattr(command, "open_pool", lambda _: answering(detections()))
    assert command.main(["--source", str(film), "--classes", "a", "b", "--output", str(tmp_path / "out/a.jsonl")]) == 2
    assert "a.jsonl cannot be written" in capsys.readouterr().err
