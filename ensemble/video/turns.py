"""The records of a batch of videos' frames on its way: jobs, turns, calls of the tracker, answers; and how a turn
begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemble.pipeline import Begun as DetectorBegun
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import attempt
from ensemble.video.follow import Rules
from ensemble.video.request import Asked
from ensemble.video.sessions import Session, Sessions


@dataclass(slots=True)
class VideoJob(Job):
    """One frame of a session: what is asked of that, and once it was looked for, the session or why there is none, and
    the frame's number in it."""

    asked: Asked = field(default_factory=lambda: Asked(0))
    session: Session | Exception | None = None
    frame: int = 0


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
    how the session was before, to which `undo` goes back. `given` are masks of this frame by object, `propagated` what
    the tracker says of those in `order`."""

    image: int
    job: VideoJob
    session: Session
    frame: int
    due: bool
    before: Session
    given: dict[int, np.ndarray] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    propagated: dict[int, tuple[np.ndarray, float]] = field(default_factory=dict)

    def undo(self) -> None:
        self.session.restore(self.before)


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


def begin_turn(sessions: Sessions, image: int, job: VideoJob) -> Turn:
    """The turn of a frame, which is this one of its batch; after an `undo`, the same again. Raises RequestError where
    the session cannot be found or begun."""
    asked, names = job.asked, tuple(ids.tobytes() for ids, _ in job.tokens)
    if job.session is None:
        job.session = attempt(_find, sessions, asked)
        if isinstance(job.session, Session):
            job.frame, job.session.frames = job.session.frames, job.session.frames + 1
    if not isinstance(job.session, Session):
        raise job.session
    session, frame = job.session, job.frame
    before = session.snapshot()
    changed = session.names != names
    if changed:
        _rename(session, names)
    turn = Turn(image, job, session, frame, True, before)
    if asked.seeds is not None:
        seeds = asked.seeds
        session.follower.seed(frame, seeds.ids, seeds.class_ids, seeds.bits)
        turn.given = {int(n): bits for n, bits in zip(seeds.ids, seeds.bits, strict=True)}
    nothing = not session.follower.objects
    turn.due = changed or nothing or bool(turn.given) or frame % asked.detect_every == 0
    return turn


def _find(sessions: Sessions, asked: Asked) -> Session:
    if asked.start:
        return sessions.begin(asked, Rules(max_objects=asked.max_objects))
    return sessions.find(asked.session)


def _rename(session: Session, names: tuple[bytes, ...]) -> None:
    """Other names than in the last frame: objects of names that are gone end, the others keep their ids."""
    session.follower.close_classes({old: names.index(n) for old, n in enumerate(session.names) if n in names})
    known = {known.object_id for known in session.follower.objects}
    session.taken = {n: slot for n, slot in session.taken.items() if n in known}
    session.names, session.presence = names, np.zeros(len(names), np.float32)
