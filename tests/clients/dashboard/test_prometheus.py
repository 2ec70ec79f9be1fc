"""What the page tells Prometheus of its cameras."""

from collections import Counter

import numpy as np

from clients.dashboard.board import Board
from clients.dashboard.prometheus import FAMILIES, exposition
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.request import Answer
from clients.video.reader import CapturedFrame
from tests.clients.dashboard.pages import page

NAME = 'the "yard" \\ west'


def board():
    yard = CameraConfig(NAME, "none", ("person",), (0.5,), fps=10.0, least_fps=2.0, weight=3.0)
    return Board([Camera(yard), Camera(CameraConfig("gate", "none", ("person",), (0.5,)))])


def answered(board, found, captured, outcome="answered"):
    camera = board.cameras[NAME]
    frame = CapturedFrame(0, 0.0, np.zeros((4, 6, 3), np.uint8), captured, 0, b"")
    told = Answer(frame, outcome, 250.0, found)
    camera.stats.count(told, gated=False)
    board(camera, told)


def samples(text):
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_the_account_of_each_camera(detections):
    shown = board()
    answered(shown, detections(), 103.0)
    answered(shown, None, 104.0, "timeout")
    camera = shown.cameras[NAME]
    camera.stats.dropped = Counter(no_turn=3, late=1)
    camera.reader.replaced = camera._replaced + 2
    camera.reader.state, camera.claim.by_floor, camera.reader.read = "live", 4, 10
    told = samples(exposition(shown, began=100.0, now=110.5))
    yard = r'camera="the \"yard\" \\ west"'
    expected = {
        **{f'sam3_camera_frames_total{{{yard},outcome="{outcome}"}}': n for outcome, n in
           {"answered": 1, "still": 0, "dropped": 6, "failed": 1}.items()},
        f'sam3_camera_dropped_total{{{yard},reason="no_turn"}}': 3,
        f'sam3_camera_dropped_total{{{yard},reason="late"}}': 1,
        f'sam3_camera_turns_total{{{yard},by="floor"}}': 4,
        f'sam3_camera_turns_total{{{yard},by="weight"}}': 0,
        f"sam3_camera_detections_total{{{yard}}}": len(detections()),
        f"sam3_camera_answer_age_seconds{{{yard}}}": 7.5,
        f'sam3_camera_latency_seconds{{{yard},quantile="0.5"}}': 0.25,
        f'sam3_camera_latency_seconds{{{yard},quantile="0.95"}}': 0.25,
        f"sam3_camera_live{{{yard}}}": 1,
        f"sam3_camera_read_total{{{yard}}}": 10,
        f"sam3_camera_target_fps{{{yard}}}": 10,
        f"sam3_camera_floor_fps{{{yard}}}": 2,
        f"sam3_camera_weight{{{yard}}}": 3,
        'sam3_camera_weight{camera="gate"}': 1,
        'sam3_camera_answer_age_seconds{camera="gate"}': 10.5,
        'sam3_camera_live{camera="gate"}': 0,
    }  # fmt: skip
    assert {name: float(told[name]) for name in expected} == expected
    assert not [name for name in told if name not in expected and "gate" not in name]


async def test_the_page_has_them():
    async with page(board(), token="secret") as ask:
        assert (await ask("/metrics"))[0] == 401
        status, body = await ask("/metrics", headers={"Authorization": "Bearer secret"})
    assert status == 200
    told = body.decode()
    assert [f"# TYPE {family.name} {family.kind}" in told for family in FAMILIES] == [True] * len(FAMILIES)
