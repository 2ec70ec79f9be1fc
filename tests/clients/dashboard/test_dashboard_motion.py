"""The page's figures of a camera's motion gate, and masked regions that are set while it runs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clients.dashboard.board import Board
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.request import Answer
from clients.video.motion import Motion
from clients.video.reader import CapturedFrame
from tests.clients.dashboard.pages import page

YARD = CameraConfig("yard", "none", ("red circle", "blue square"), (0.5, 0.5), motion=Motion())
CORNER = [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5]]


async def test_figures_tell_of_the_motion_gate(detections):
    """Frames that were not sent have a picture too; the latency shown is that of an answer of the server."""
    yard = Camera(YARD)
    board = Board([yard])
    assert board.figures()[0]["motion"] == {"moving": True, "saved": 0.0, "advice": "", "regions": ()}
    for i in range(4):
        frame = CapturedFrame(i, i / 10, np.full((360, 640, 3), 90, np.uint8), 0.0, 0, b"")
        given = Answer(frame, "answered", 42.0, detections())
        board(yard, replace(given, outcome="still", latency_ms=0.2, answered_frame=0) if i else given)
    yard.stats.answered, yard.stats.still, yard.gate.moving = 1, 3, False
    (figures,) = board.figures()
    assert figures["motion"] == {"moving": False, "saved": 0.75, "advice": "", "regions": ()}
    assert (figures["frame"], figures["latency_ms"], figures["still"]) == (3, 42, 3)
    assert await board.picture("yard")


async def test_masked_regions_are_set_reported_and_cleared():
    yard = Camera(replace(YARD, motion=Motion(smallest=0.01)))
    async with page(Board([yard])) as ask:
        assert (await ask("/api/cameras/yard/regions", [CORNER]))[0] == 204
        assert json.loads((await ask("/api/cameras"))[1])[0]["motion"]["regions"] == [CORNER]
        assert yard.gate.motion == yard.config.motion == Motion(smallest=0.01, regions=((*map(tuple, CORNER),),))
        assert (await ask("/api/cameras/yard/regions", []))[0] == 204
    assert yard.gate.motion.regions == ()


@pytest.mark.parametrize(
    ("regions", "why"),
    [
        ([CORNER[:2]], "at least three corners of a region, got 2"),
        ([[*CORNER, [0.2, 1.5]]], "fractions of the frame from 0 to 1, got some outside; draw inside the frame"),
        ([[[0, 0], [1, 0], [1, 1], [0, 1]]], "regions that leave a part of the frame"),
        ([[[0, 0], [1, 0], [1]]], "0.2.1: Field required"),
    ],
    ids=["two corners", "outside", "all of it", "half a corner"],
)
async def test_unusable_regions_are_refused(regions, why):
    yard = Camera(YARD)
    async with page(Board([yard])) as ask:
        status, body = await ask("/api/cameras/yard/regions", regions)
    assert (status, why in json.loads(body)["detail"]) == (422, True), body
    assert yard.gate.motion == Motion()


async def test_a_camera_without_a_gate_has_no_regions():
    async with page(Board([Camera(replace(YARD, motion=None))])) as ask:
        status, body = await ask("/api/cameras/yard/regions", [CORNER])
    assert status == 422
    assert "write `motion: true` in the configuration" in json.loads(body)["detail"]
