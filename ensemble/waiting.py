"""Work that waits for a thread, until it becomes one batch with as much as came meanwhile; and the count of frames by
which several instances of a model share the load."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar


class Work(Protocol):
    """What waits for a thread: frames of one front model."""

    @property
    def front(self) -> Any: ...  # has the `variant` that says how many frames a batch may have

    @property
    def jobs(self) -> Sequence[Any]: ...


AnyWork = TypeVar("AnyWork", bound=Work)


class Waiting(Generic[AnyWork]):
    """Work that waits for a thread, in the order of coming."""

    def __init__(self, most: int) -> None:
        """`put` blocks while `most` frames wait or more."""
        self._most = most
        self._waiting: deque[AnyWork] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def empty(self) -> bool:
        return not self._waiting

    def put(self, work: AnyWork) -> None:
        with self._changed:
            self._changed.wait_for(lambda: sum(len(waiting.jobs) for waiting in self._waiting) < self._most)
            self._waiting.append(work)
            self._changed.notify_all()

    def close(self) -> None:
        """`take` returns what is there, and after that nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[AnyWork]:
        """The oldest, and of the same front model as much as fits in its largest batch with it. Blocks until there is
        something; empty after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            taken: list[AnyWork] = []
            left: deque[AnyWork] = deque()
            frames = 0
            for work in self._waiting:
                fits = not taken or (
                    work.front is taken[0].front and frames + len(work.jobs) <= work.front.variant.max_batch
                )
                (taken if fits else left).append(work)
                frames += len(work.jobs) if fits else 0
            self._waiting = left
            self._changed.notify_all()
            return taken


class Taken:
    """Frames that an instance of a model has taken from Triton and not begun to compute. As long as there are `most` or
    more, `wait` does not return: Triton gives the next ones to an instance that has less to do."""

    def __init__(self, most: float) -> None:
        self._most, self._frames, self._fewer = most, 0, threading.Condition()

    def add(self, frames: int) -> None:
        with self._fewer:
            self._frames += frames

    def remove(self, frames: int) -> None:
        with self._fewer:
            self._frames -= frames
            self._fewer.notify_all()

    def wait(self) -> None:
        with self._fewer:
            self._fewer.wait_for(lambda: self._frames < self._most)
