"""The records of a batch of videos' frames on its way: jobs, turns, calls of the tracker, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemble.pipeline import Begun as DetectorBegun
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.video.request import Asked
from ensemble.video.sessions import Session


@dataclass(slots=True)
class VideoJob(Job):
    """One frame of a session."""

    asked: Asked = field(default_factory=lambda: Asked(0))


@dataclass(slots=True)
class Tracks(Detections):
    """What is followed and can be seen in one frame, best first, and what the answer says of the session."""

    track_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    track_scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    track_states: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    hidden_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    frame_index: int = 0
    dropped_objects: int = 0
    session_bytes: int = 0


@dataclass(slots=True)
class Turn:
    """One session's part of a batch: the frame's place in it, its number in the video, whether the detector looks, and
    how the session was before. `given` are masks of this frame by object, `propagated` what the tracker says of those
    in `order`."""

    image: int
    job: VideoJob
    session: Session
    frame: int
    due: bool
    before: Session
    given: dict[int, np.ndarray] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    propagated: dict[int, tuple[np.ndarray, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One object in one call of the tracker."""

    turn: Turn
    object_id: int
    slot: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """One call of the tracker: its rows, and what stays on the device until it is known what to remember."""

    rows: Sequence[Row]
    mask_logits: Any
    pointer: Any


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch whose features are under way: of each job its turn or why it has none. The detector gets the frames
    `seen`, by their place in the batch."""

    turns: list[Turn | Exception]
    hidden: Any
    seen: list[int]
    detector: DetectorBegun | None
    times: dict[str, float]
