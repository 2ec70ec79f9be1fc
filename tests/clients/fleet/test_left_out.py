"""Cameras with a motion gate: which frames the server gets, what stands for the others, and the account."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from clients.errors import RequestTimeout
from clients.fleet import camera as module
from clients.fleet import stats
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.fleet import run_fleet, status_line
from clients.fleet.request import Answer
from clients.fleet.zones import Zone
from clients.outputs.records import answer_record
from clients.video.frames import Frame
from clients.video.motion import Motion
from clients.video.reader import AHEAD, CapturedFrame, Reader
from tests.clients.fleet.test_fleet import Server, pool
from tests.clients.fleet.virtual import VirtualPolicy

EMPTY, BOX, OTHER = (np.full((72, 128, 3), 90, np.uint8) for _ in range(3))
BOX[30:50, 40:60] = 220
OTHER[10:30, 80:100] = 220
BASE = CameraConfig("yard", "a film", ("blue square", "red circle"), (0.5, 0.5), motion=Motion(refresh_s=60))
WAITING = 1 + module.STILLS + AHEAD
"""The frame that was sent, those whose turn it is with its answer, and those that are decoded ahead."""
EVERYWHERE = Zone("yard", ((0, 0), (1, 0), (1, 1.01), (0, 1.01)), seconds=0.5, classes=("red circle",))


@pytest.fixture
def event_loop_policy():
    return VirtualPolicy()


class Film:
    """Pictures at 10 fps, which are decoded when they are asked for."""

    fps, live = 10.0, False

    def __init__(self, pictures):
        self.pictures, self.count = pictures, len(pictures)

    def read(self, wanted):
        for i, picture in enumerate(self.pictures):
            wanted(i / self.fps)
            yield Frame(i, i / self.fps, picture)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Held(Server):
    """Answers once as many frames as can wait are there, `seconds` after that."""

    async def detect(self, image, classes, **options):
        while self.reader.read < WAITING:
            await asyncio.sleep(0.001)
        return await super().detect(image, classes, **options)


async def run(pictures, server, act=lambda camera, answer: None, **options):
    """The camera, its account and its answers."""
    yard = Camera(replace(BASE, **options))
    yard.reader = Reader("a film", gate=yard.gate, opener=lambda _: Film(pictures))
    answers, server.reader = [], yard.reader

    def keep(camera, answer):
        answers.append(answer)
        act(camera, answer)

    summary = await run_fleet([yard], pool(server), keep, asyncio.Event())
    (each,) = summary["each"]
    gone = sum(each["dropped"].values()) + sum(each["failed"].values())
    assert each["read"] == each["answered"] + each["still"] + gone == len(pictures)
    assert summary["read"] == summary["answered"] + summary["still"] + summary["dropped"] + summary["failed"]
    assert [a.frame.index for a in answers] == list(range(len(pictures)))
    return yard, each, answers


async def test_frames_in_which_nothing_moves_are_not_sent(detections):
    server = Server(detections())
    yard, each, answers = await run([EMPTY] * 4 + [BOX] * 30 + [OTHER] * 2, server)
    assert (server.requests, each["answered"], each["still"], each["dropped"]) == (3, 3, 33, {})
    assert [a.frame.index for a in answers if not a.unchanged] == [0, 4, 34]
    lines = [answer_record(yard, answer) for answer in answers]
    assert lines[20]["unchanged"] is True
    assert (lines[20]["outcome"], lines[20]["answered_frame"], lines[20]["frame"]) == ("still", 4, 20)
    assert lines[20]["detections"] == lines[4]["detections"] != []
    assert not {"stage_ms", "request_ms"} & lines[20].keys()
    assert "unchanged" not in lines[4]
    assert (each["detections"], len(yard.stats.latencies_ms)) == (6, 3), "of what the server answered"
    assert status_line([yard]).startswith("yard: 3 answered, 33 still, 0 dropped")


async def test_tracks_and_zones_go_on(detections):
    """An event after half a second, of which the server saw the first frame; one event for one stay."""
    pytest.importorskip("supervision")
    _, each, answers = await run([BOX] * 40, Server(detections()), zones=(EVERYWHERE,))
    assert each["answered"] == 1
    ((frame, event),) = [(a.frame.index, event) for a in answers for event in a.events]
    assert (event["zone"], event["label"]) == ("yard", "red circle")
    assert 5 <= frame <= 7
    assert len({a.tracks for a in answers[2:]}) == 1
    assert min(answers[-1].tracks) > 0


async def test_nothing_stands_for_frames_after_one_that_failed(detections):
    """The next one is sent."""
    server = Held(detections(), trouble={1: RequestTimeout("slow")}.get)
    _, each, answers = await run([EMPTY] * 40, server)
    outcomes = [a.outcome for a in answers]
    lost = outcomes.count("no_answer")
    assert lost in (WAITING - 1, WAITING), "one more may have been looked at meanwhile"
    assert outcomes == ["timeout", *["no_answer"] * lost, "answered", *["still"] * (38 - lost)]
    assert each["dropped"] == {"no_answer": lost}


async def test_a_late_answer_stands_for_later_frames(detections):
    """It is too late for the frame that it is the answer to, and for those that waited as long."""
    yard, now = Camera(replace(BASE, deadline_s=0.2)), asyncio.get_running_loop().time()
    first, waited, fresh = (CapturedFrame(i, i / 10, EMPTY, now - age, 0, b"") for i, age in enumerate((0.5, 0.4, 0)))
    yard._latest = Answer.now(first, "late", detections())
    assert [yard._standing(frame).outcome for frame in (waited, fresh)] == ["late", "still"]
    yard._latest = Answer.now(first, "late")  # it was not sent
    assert yard._standing(fresh).outcome == "no_answer"


async def test_another_question_is_asked_at_once(detections):
    server = Server(detections())

    def ask(camera, answer):
        if answer.frame.index == 20:
            camera.config = replace(camera.config, classes=("person", "dog"))

    _, _, answers = await run([EMPTY] * 60, server, ask)
    assert server.classes == [BASE.classes, ("person", "dog")]
    assert [a.outcome for a in answers].count("answered") == 2


async def test_a_camera_whose_every_frame_moves_is_told(detections, monkeypatch, caplog):
    monkeypatch.setattr(stats, "BUSY", 20)
    _, each, _ = await run([EMPTY, BOX] * 15, Server(detections()))
    assert (each["answered"], each["still"]) == (30, 0)
    assert "the motion gate leaves out 0 of 20 frames" in each["advice"]
    assert [r.getMessage() for r in caplog.records] == [f"yard: {each['advice']}"]


async def test_without_a_gate_every_frame_is_sent(detections):
    server = Server(detections())
    _, each, _ = await run([EMPTY] * 12, server, motion=None)
    assert (server.requests, each["answered"], each["still"]) == (12, 12, 0)
