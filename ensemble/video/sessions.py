"""The sessions of one video front model: which there are, which slots of the bank are whose, and when one is over.

A session reserves all its slots when it begins, so nothing can run out while it goes on. Triton does not tell a model
that a sequence has timed out: whoever has sent no frame for a while is swept by this module's own clock.

How long a frame has waited before it comes here, where others are computed for minutes, nobody says. But frames come in
turn, and each was sent after the answer to the one before it. So a session's frame shows who was idle at that answer:
whoever had sent one by then has had his turn.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ensemble.request import RequestError
from ensemble.video.follow import Follower, Rules
from ensemble.video.request import Asked

IDLE_S = 60.0
"""A session without a frame for so long after its last answer is over. Triton's own limit is twice as long."""
OUTCOMES = ("ended", "expired", "refused", "restarted")
"""Of sessions, as counted: its client ended it, it was idle, no slots were free, its id began again."""


@dataclass(slots=True)
class Session:
    """One video. `slots` are all that it has reserved, `taken` those of its objects by id; `names` are the class names
    of the last frame, as tokens; `presence` is what the detector last said of each; `last_used` is when its last frame
    was answered, or begun."""

    number: int
    max_objects: int
    slots: list[int]
    follower: Follower
    last_used: float
    taken: dict[int, int] = field(default_factory=dict)
    names: tuple[bytes, ...] = ()
    presence: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    frames: int = 0

    def take(self, object_id: int) -> int:
        """A slot for that object, its own where it has one."""
        if object_id not in self.taken:
            used = set(self.taken.values())
            self.taken[object_id] = next(slot for slot in self.slots if slot not in used)
        return self.taken[object_id]

    def snapshot(self) -> Session:
        """What `restore` goes back to when a frame fails: who was followed, and in which slots."""
        kept = copy.copy(self)
        kept.follower, kept.taken = self.follower.copied(), dict(self.taken)
        return kept

    def restore(self, earlier: Session) -> None:
        self.follower, self.taken = earlier.follower, earlier.taken
        self.names, self.presence = earlier.names, earlier.presence


class Sessions:
    """All sessions of one video front model; for any number of threads."""

    def __init__(
        self,
        model: str,
        slots: int,
        slot_bytes: int,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._idle_s, self._clock = model, idle_s, clock
        self.slots, self.slot_bytes = slots, slot_bytes
        self._free = list(range(slots))[::-1]
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self.over: Counter[str] = Counter()
        """Sessions so far by OUTCOMES."""

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def used_slots(self) -> int:
        """Slots that sessions have reserved."""
        return self.slots - len(self._free)

    def begin(self, asked: Asked, rules: Rules) -> Session:
        """The session of a frame that begins one; one of the same id is over. Raises RequestError where not enough
        slots are free."""
        with self._lock:
            if asked.session in self._sessions:
                self._close(asked.session, "restarted")
            if len(self._free) < asked.max_objects:
                self._sweep(self._clock())
            if len(self._free) < asked.max_objects:
                self.over["refused"] += 1
                raise RequestError(self._full(asked.max_objects))
            slots = [self._free.pop() for _ in range(asked.max_objects)]
            session = Session(asked.session, asked.max_objects, slots, Follower(rules, asked.first_id), self._clock())
            self._sessions[asked.session] = session
            return session

    def find(self, number: int) -> Session:
        """The session of a frame in its course. Raises RequestError where there is none, or none any more."""
        with self._lock:
            session = self._sessions.get(number)
            if session is None:
                raise RequestError(
                    f"session: {self._model} knows none of id {number}: it was never started, ended, sent no frame for"
                    f" {self._idle_s:.0f} s, or the server was started again; begin it anew with the start flag, and"
                    " with the last masks as seed_masks to keep the ids"
                )
            self._sweep(session.last_used)
            session.last_used = self._clock()
            return session

    def answered(self, sessions: Iterable[Session]) -> None:
        """Frames of these sessions have been computed: from now on they may be idle."""
        with self._lock:
            for session in sessions:
                session.last_used = self._clock()

    def end(self, number: int) -> None:
        """The client's own end; of a session that is not there nothing happens."""
        with self._lock:
            if number in self._sessions:
                self._close(number, "ended")

    def _sweep(self, then: float) -> None:
        """Ends what was idle for too long at that time."""
        for number in [n for n, s in self._sessions.items() if then - s.last_used > self._idle_s]:
            self._close(number, "expired")

    def _close(self, number: int, why: str) -> None:
        self._free.extend(self._sessions.pop(number).slots)
        self.over[why] += 1

    def _full(self, wanted: int) -> str:
        objects = Counter(session.max_objects for session in self._sessions.values())
        held = " and ".join(f"{count} sessions of {most} objects" for most, count in objects.most_common(3)) or "none"
        megabytes = self.slots * self.slot_bytes / 2**20
        return (
            f"session: {self._model} holds {held} in {megabytes:,.0f} MB and has room for {len(self._free)} objects,"
            f" expected {wanted}; end a session, lower max_objects, or start the server with a larger --video-memory"
        )
