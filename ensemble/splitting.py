"""Batches that memory does not suffice for at once: they are computed in smaller calls, which are remembered.

Pictures and videos share this. A flow (`ensemble/pipeline.py`, `ensemble/video/pipeline.py`) says what its own calls
can take less of; that a batch can have fewer frames is known here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ensemble.limits import Limit, is_out_of_memory
from ensemble.preprocess.cpu import attempt

log = logging.getLogger(__name__)
PATIENCE = 500
"""Calls without want of memory after which larger ones are tried again."""


class Flow(Protocol):
    """What computes a batch, in two halves, as `Pipeline` describes them. Where either raises, it can be given the same
    jobs again."""

    @property
    def limits(self) -> Sequence[Limit]:
        """What a call for a single frame can take less of, in the order in which that is tried."""

    def begin(self, jobs: Sequence[Any], pixel_values: Any) -> Any: ...

    def complete(self, begun: Any) -> Sequence[Any]: ...

    def no_room(self, job: Any) -> str:
        """What its caller is told of a frame that has no room in the smallest calls."""


@dataclass(slots=True)
class Begun:
    """A batch between the two halves of a `Splitter`'s work: its jobs, their pixels, and what the flow has made of the
    first `frames` of them, or why it could not."""

    jobs: Sequence[Any]
    pixel_values: Any
    frames: int
    first: Any


class Splitter:
    """One flow's batches, of any size; for one thread, which computes."""

    def __init__(self, flow: Flow, most_frames: int, release: Callable[[], None]) -> None:
        """`release` gives back memory that is kept for the next calls."""
        self._flow, self._release = flow, release
        self._frames = Limit(most_frames, "calls now take at most %d")
        self._since_short = 0  # calls that memory sufficed for, since it did not

    def begin(self, jobs: Sequence[Any], pixel_values: Any) -> Begun:
        """Starts the first call of a batch. `complete` comes before the next `begin`."""
        frames = min(len(jobs), self._frames.most)
        first = attempt(self._flow.begin, jobs[:frames], pixel_values[:frames]) if jobs else None
        return Begun(jobs, pixel_values, frames, first)

    def complete(self, begun: Begun) -> list[Any]:
        """The answer to each job, in order. What the flow raises is the answer to all frames of its call; where memory
        runs out, a call is halved, and a single frame's takes less of what the flow names. What was too much is not
        tried again for a while."""
        jobs, pixel_values, done = begun.jobs, begun.pixel_values, begun.frames
        first, begun.first = begun.first, None  # what was made for a call that fails leaves its room to smaller ones
        made = first if isinstance(first, Exception) or not jobs else attempt(self._flow.complete, first)
        del first
        found = [*self._answers(jobs[:done], pixel_values[:done], made)] if jobs else []
        while len(found) < len(jobs):
            part = slice(len(found), len(found) + self._frames.most)
            found += self._run(jobs[part], pixel_values[part])
        return found

    def _run(self, jobs: Sequence[Any], pixel_values: Any) -> Sequence[Any]:
        made = attempt(lambda: self._flow.complete(self._flow.begin(jobs, pixel_values)))
        return self._answers(jobs, pixel_values, made)

    def _answers(self, jobs: Sequence[Any], pixel_values: Any, made: Sequence[Any] | Exception) -> Sequence[Any]:
        """What a call made; after one that failed the error to all its frames, and serving goes on; or, where memory
        ran out, what smaller calls find."""
        if not isinstance(made, Exception):
            self._recover()
            return made
        if not is_out_of_memory(made):
            log.error("a call failed for %d frames", len(jobs), exc_info=made)
            return [made] * len(jobs)
        self._since_short = 0
        made.__traceback__ = made.__context__ = made.__cause__ = None  # they hold what the call had made so far
        self._release()
        half = len(jobs) // 2
        if half:
            self._frames.most = half
            log.warning("memory ran out for %d frames at once; %s", len(jobs), str(self._frames))
            return [*self._run(jobs[:half], pixel_values[:half]), *self._run(jobs[half:], pixel_values[half:])]
        smaller = next((limit for limit in self._flow.limits if limit.shrink()), None)
        if smaller is None:
            return [MemoryError(self._flow.no_room(jobs[0]))]
        log.warning("memory ran out for one frame; %s", str(smaller))
        return self._run(jobs, pixel_values)

    def _recover(self) -> None:
        """After a while without want of memory, calls take twice as much again, first of what became less last."""
        self._since_short += 1
        if self._since_short >= PATIENCE:
            self._since_short = 0
            any(limit.grow() for limit in reversed([self._frames, *self._flow.limits]))
