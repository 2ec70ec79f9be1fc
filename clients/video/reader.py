"""One camera's reading thread: an address flows in, encoded frames flow out to the event loop, decoded ahead and never
waited for.

Decoding, conversion and JPEG take milliseconds and a camera may hang for seconds, so all of it happens in a thread; the
loop only takes what lies ready. A live camera keeps its newest frame, because an old one is of no use, and counts those
that were replaced; a file waits until its frames are taken. A live camera that ends, hangs or sends garbage is opened
again, at growing intervals.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.video.encode import to_jpeg
from clients.video.frames import Frame, Source, SourceError, public
from clients.video.sources import open_source

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Between attempts to open a camera again: doubled each time, and spread so that many cameras do not come at once."""
AHEAD = 3
"""Frames of a file that lie ready."""


@dataclass(frozen=True, slots=True, eq=False)
class CapturedFrame:
    """A frame on its way: its number among the camera's frames, seconds from the camera's start, when it was there
    (`time.monotonic`), how many newer ones replaced before it since the last one taken, pixels uint8 [H,W,3], and its
    JPEG.
    """

    index: int
    time_s: float
    captured: float
    replaced: int
    rgb: NDArray[np.uint8]
    jpeg: bytes


class Reader:
    """Reads `address` in a thread of its own; belongs to the event loop it was started in.

    `fps` is the most frames a second that are taken of the source (None: all); the others are not counted. `realtime`
    plays a file at its own speed, as if it were live; `loop` plays it for ever. The counts: `read` frames were offered,
    `replaced` of them by newer ones before anybody took them; `reconnects` are the times that a live camera was opened
    again; `state` is a word for people.
    """

    def __init__(
        self,
        address: str,
        *,
        fps: float | None = None,
        realtime: bool = False,
        loop: bool = False,
        opener: Callable[[str], Source] = open_source,
        first_pause: float = FIRST_PAUSE_S,
    ) -> None:
        self.address, self.fps, self.realtime, self.repeat = address, fps, realtime, loop
        self.read = self.replaced = self.reconnects = 0
        self.state, self.error = "connecting", ""
        self._opener, self._first_pause = opener, first_pause
        self._ready: deque[CapturedFrame] = deque()
        self._change = threading.Condition()
        self._stopping = threading.Event()
        self._ended = False
        self._next_due = self._film_s = 0.0
        self._born, self._seen = time.monotonic(), 0  # frames decoded, those that are not due among them
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"reader {public(address)}", daemon=True)

    # ---- the loop's side
    def start(self) -> Reader:
        """Starts the thread; call it in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def available(self) -> bool:
        """Waits until a frame lies ready; False when there will be none, since the source ended."""
        while not self._ready:
            if self._ended:
                return bool(self._ready)
            self._wake.clear()
            if self._ready or self._ended:
                continue
            await self._wake.wait()
        return True

    def take(self) -> CapturedFrame | None:
        """The next frame of a file, the newest one of a live camera; None if there is none. Never waits."""
        with self._change:
            picture = self._ready.popleft() if self._ready else None
            self._change.notify()
        return picture

    async def next(self) -> CapturedFrame | None:
        """`available`, then `take`."""
        return self.take() if await self.available() else None

    def stop(self) -> int:
        """Ends the reading and returns how many frames lay ready and will not be taken. The thread itself ends by and
        by."""
        self._stopping.set()
        with self._change:
            left = len(self._ready)
            self._ready.clear()
            self._ended = True
            self._change.notify_all()
        self._wake.set()
        return left

    def join(self, timeout: float) -> bool:
        """Waits for the thread at most `timeout` seconds; whether it has ended. A hanging camera's thread does not keep
        Python alive."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- the thread's side
    def _run(self) -> None:
        pause = self._first_pause
        while not self._stopping.is_set():
            before, live = (
                self._seen,
                self._seen > 0,
            )  # who has delivered and then fails to open is a camera that is away
            try:
                with self._opener(self.address) as source:
                    live = source.live
                    self._play(source)
                    if not live and not self.repeat:
                        break
                    self.error = f"{public(self.address)!r} ended" if live else ""
            except Exception as error:  # whatever a camera does to a decoder must not end its thread in silence
                self.error = str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"
                if not live and (self._seen > before or not _may_come_back(self.address)):
                    break  # a damaged file would break at the same place again
            if not live and self.repeat and self._seen > before:
                continue
            pause = self._first_pause if self._seen > before else min(2 * pause, LONGEST_PAUSE_S)
            self.state = "lost" if self._seen else "connecting"
            self._stopping.wait(pause * random.uniform(0.8, 1.2))
            self.reconnects += not self._stopping.is_set()
        self.state = "failed" if self.error and not self._stopping.is_set() else "ended"
        self._ended = True
        self._notify()

    def _play(self, source: Source) -> None:
        newest_only = source.live or self.realtime
        start = time.monotonic()
        began = (
            start - self._born if newest_only else self._film_s
        )  # times go on where another connection or round left them
        for frame in source.read(lambda time_s: self._wanted(began + time_s, 1 / source.fps)):
            if self.realtime and not source.live:
                self._stopping.wait(max(0.0, start + frame.time_s - time.monotonic()))
            if self._stopping.is_set():
                return
            self.state = "live"
            self._offer(frame, began + frame.time_s, newest_only)

    def _wanted(self, time_s: float, lasts: float) -> bool:
        """Whether the frame at that time, in seconds from the camera's start, is due at the configured rate."""
        self._seen += 1
        self._film_s = time_s + lasts
        if self._stopping.is_set():
            return True  # so that the reading can end
        if not self.fps:
            return True
        if time_s + 1e-3 < self._next_due:
            return False
        # from the schedule and not from this frame, or 10 of 25 fps becomes 8.3; from this frame where the schedule was
        # left behind
        self._next_due = max(self._next_due + 1 / self.fps, time_s + 1e-3)
        return True

    def _offer(self, frame: Frame, time_s: float, newest_only: bool) -> None:
        captured, jpeg = time.monotonic(), to_jpeg(frame.rgb)
        with self._change:
            if newest_only and self._ready:
                old = self._ready.pop()
                self.replaced += 1
                replaced = old.replaced + 1
            else:
                replaced = 0
                while len(self._ready) >= AHEAD and not self._stopping.is_set():
                    self._change.wait()
            if self._stopping.is_set():
                return
            self._ready.append(CapturedFrame(self.read, time_s, captured, replaced, frame.rgb, jpeg))
            self.read += 1
        self._notify()

    def _notify(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._wake.set)


def _may_come_back(address: str) -> bool:
    return "://" in address or address.startswith("webcam:")
