"""Cameras on the page whose objects the server's tracker follows."""

from dataclasses import fields, replace

import numpy as np
import pytest

from clients.conversation import Tracks
from clients.dashboard.board import Board
from clients.dashboard.edit import Refused, checked_exemplars
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.request import Answer, Exemplar
from clients.video.reader import CapturedFrame

CONFIG = CameraConfig("gate", "none", ("red circle",), (0.5,), in_flight=1, masks="bits", track="masks")


def test_figures_tell_of_hidden_objects(detections):
    found = detections()
    count = len(found)
    tracks = Tracks(
        **{field.name: getattr(found, field.name) for field in fields(found)},
        track_ids=np.arange(count),
        track_scores=np.ones(count, np.float32),
        track_states=np.zeros(count, np.int32),
        hidden_ids=np.array([7, 9]),
    )
    frame = CapturedFrame(0, 0.0, np.zeros((48, 64, 3), np.uint8), 0.0, 0, b"")
    board = Board([Camera(CONFIG), Camera(replace(CONFIG, name="yard"))])
    board(board.cameras["gate"], Answer(frame, "answered", 42.0, tracks, tracks=tuple(range(count))))
    gate, yard = board.figures()
    assert [d["track"] for d in gate["detections"]] == list(range(count))
    assert (gate["hidden"], yard["hidden"]) == ([7, 9], [])


def test_they_take_no_examples():
    assert checked_exemplars(CONFIG, ()) == ()
    with pytest.raises(Refused, match="looks for names alone"):
        checked_exemplars(CONFIG, (Exemplar("red circle", (0.1, 0.1, 0.2, 0.2)),))
