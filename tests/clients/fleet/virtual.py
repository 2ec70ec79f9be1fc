"""A virtual clock for tests of the fleet: an event loop whose time jumps to the next timer, and readers on its clock.

Nothing here waits, so a test takes the same steps on a fast and on a busy machine.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque

import numpy as np

from clients.video.reader import AHEAD, CapturedFrame
from clients.video.skipped import Skipped

RGB = np.zeros((8, 8, 3), np.uint8)


class VirtualSelector(selectors.SelectSelector):
    """Advances its clock by the time that a selector would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None):
        if timeout is None or timeout <= 0:
            return super().select(timeout)  # nothing is timed: wait for threads, or look without waiting
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which starts at 0 seconds."""

    def __init__(self) -> None:
        self.virtual = VirtualSelector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now


class VirtualPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes virtual loops, for pytest-asyncio's fixture `event_loop_policy`."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop()


class VirtualReader:
    """Like `clients.video.reader.Reader` without its thread: a film of `frames` frames at 10 fps, or a live camera that
    captures one every `pause` seconds of the loop's clock."""

    source_fps = 10.0

    def __init__(self, frames: int, live: bool = False, pause: float = 0.005) -> None:
        self.frames, self.live, self.pause = frames, live, pause
        self.read = self.replaced = self.reconnects = 0
        self.state, self.error, self.skipped = "connecting", "", Skipped()
        self._ready: deque[CapturedFrame] = deque()
        self._change = asyncio.Event()
        self._taken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self):
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def available(self) -> bool:
        while not self._ready and self.state not in ("ended", "failed"):
            self._change.clear()
            await self._change.wait()
        return bool(self._ready)

    def take(self) -> CapturedFrame | None:
        self._taken.set()
        return self._ready.popleft() if self._ready else None

    def stop(self) -> int:
        left = len(self._ready)
        self._ready.clear()
        if self._task is not None:
            self._task.cancel()
        return left

    async def _run(self) -> None:
        self.state = "live"
        for i in range(self.frames):
            replaced = 0
            if self.live:
                await asyncio.sleep(self.pause)
                if self._ready:
                    replaced = self._ready.pop().replaced + 1
                    self.replaced += 1
            else:
                while len(self._ready) >= AHEAD:
                    self._taken.clear()
                    await self._taken.wait()
            now = asyncio.get_running_loop().time()
            self._ready.append(CapturedFrame(self.read, i / self.source_fps, RGB, now, replaced, b"jpeg"))
            self.read += 1
            self._change.set()
        self.state = "ended"
        self._change.set()
