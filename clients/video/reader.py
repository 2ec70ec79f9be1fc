"""A camera's reading thread: decodes and encodes frames ahead, so that the event loop only takes what is ready.

Decoding, colour conversion and JPEG take milliseconds, and a camera may hang for seconds: none of that may block the
event loop. Of a live camera only the newest frame is kept, and the frames that it replaced are counted; a file waits
until its frames are taken. A live camera that ends, hangs or sends garbage is opened again, at growing intervals; one
that never gave a frame and says that it will not is asked `REFUSALS` times. With a motion gate (`motion.py`) frames in
which nothing moved since the last one that went to the server are marked as still, and not encoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clients.redact import without_password
from clients.video.encode import to_jpeg
from clients.video.frames import Frame, Source, SourceError, SourceRefused
from clients.video.motion import MotionGate, View
from clients.video.skipped import Skipped
from clients.video.sources import is_remote, open_source

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Between attempts to reconnect: doubled each time, with jitter so that many cameras do not reconnect at once."""
REFUSALS = 3
"""A wrong path stays wrong, and a wrong password locks accounts; a relay may be a little later than its readers."""
EARLY = 0.25
"""Part of the time between two wanted frames by which a live one may come early: else a camera of about the wanted rate
would lose every other frame."""
AHEAD = 3
"""Frames of a file that are decoded ahead."""


@dataclass(frozen=True, slots=True, eq=False)
class CapturedFrame(Frame):
    """A frame on its way to the server. `index` counts the camera's frames, `time_s` is in seconds from its start.

    `captured` is when it was decoded (`time.monotonic`, in seconds), `replaced` how many older frames it replaced that
    were not taken in time, `jpeg` the encoded frame (empty if pixels are sent, or nothing), `view` what the
    motion gate says of it.
    """

    captured: float
    replaced: int
    jpeg: bytes
    view: View | None = None

    @property
    def still(self) -> bool:
        """Whether the motion gate says that it need not be sent."""
        return self.view is not None and self.view.still

    @property
    def image(self) -> bytes | NDArray[np.uint8]:
        """What is sent to the server: the JPEG, or the pixels where there is none."""
        return self.jpeg or self.rgb


class Reader:
    """Reads `address` in a thread of its own; belongs to the event loop in which it was started.

    `fps` limits the frames per second (None: all frames); the frames in between are not counted. `realtime` plays a
    file at its own speed as if it were live, `loop` plays it again and again. `raw` skips the JPEG. `transport` is what
    RTSP is asked for, `tcp` or `udp` (None: TCP, else UDP). Without `reconnect` a live camera that fails or ends is not
    opened again. `gate` tells which frames are still.

    `read` counts the frames that were offered, `replaced` those among them that a newer frame replaced, `reconnects`
    how often a live camera was opened again. `state` is `connecting`, `live`, `lost`, `failed` or `ended`, `error` the
    latest failure, `skipped` what could not be decoded and was left out, `source_fps` the rate of the source (valid
    from the first frame on).
    """

    def __init__(
        self,
        address: str,
        *,
        fps: float | None = None,
        realtime: bool = False,
        loop: bool = False,
        raw: bool = False,
        reconnect: bool = True,
        transport: str | None = None,
        gate: MotionGate | None = None,
        opener: Callable[[str], Source] | None = None,
        first_pause: float = FIRST_PAUSE_S,
    ) -> None:
        self.address, self.fps, self.realtime, self.repeat = address, fps, realtime, loop
        self.raw, self.reconnect, self.gate = raw, reconnect, gate
        self.read = self.replaced = self.reconnects = 0
        self.state, self.error, self.source_fps = "connecting", "", 0.0
        self.skipped = Skipped()
        self._ready: deque[CapturedFrame] = deque()
        self._change = threading.Condition()
        self._stopping = threading.Event()
        self._opener = opener or partial(open_source, transport=transport, fps=fps, pause=self._stopping.wait)
        self._first_pause, self._refusals, self._early = first_pause, 0, 0.0
        self._ended = self._newest_only = False
        self._next_due = self._film_s = 0.0
        self._born, self._seen = time.monotonic(), 0  # `_seen` counts decoded frames, including those skipped by `fps`
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"reader {without_password(address)}", daemon=True)

    # ---- called from the event loop
    def start(self) -> Reader:
        """Starts the thread; must be called in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def available(self) -> bool:
        """Waits until a frame is ready; False once the source has ended and all frames were taken."""
        while not self._ready:
            if self._ended:
                return bool(self._ready)
            self._wake.clear()
            if self._ready or self._ended:
                continue
            await self._wake.wait()
        return True

    def take(self) -> CapturedFrame | None:
        """The next frame of a file, the newest one of a live camera; None if none is ready. Never waits."""
        with self._change:
            frame = self._ready.popleft() if self._ready else None
            if frame is not None and self._newest_only:
                self._goes(frame)
            self._change.notify()
        return frame

    @property
    def still(self) -> bool:
        """Whether the frame that `take` would give is still."""
        with self._change:
            return bool(self._ready) and self._ready[0].still

    async def next(self) -> CapturedFrame | None:
        """Waits for a frame and takes it; None at the end of the source."""
        return self.take() if await self.available() else None

    def stop(self) -> int:
        """Stops reading without waiting for the thread; returns how many frames were ready and are discarded."""
        self._stopping.set()
        with self._change:
            left = len(self._ready)
            self._ready.clear()
            self._ended = True
            self._change.notify_all()
        self._wake.set()
        return left

    def join(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds for the thread; whether it has ended. A hanging camera's thread does not keep
        Python running."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- runs in the thread
    def _run(self) -> None:
        pause = self._first_pause
        while not self._stopping.is_set():
            before = self._seen
            again, live = self._open_and_play()
            if not again:
                break
            if not live and self._seen > before:
                continue  # the next round of a film
            pause = self._first_pause if self._seen > before else min(2 * pause, LONGEST_PAUSE_S)
            self.state = "lost" if self._seen else "connecting"
            self._stopping.wait(pause * random.uniform(0.8, 1.2))
            self.reconnects += not self._stopping.is_set()
        self.state = "failed" if self.error and not self._stopping.is_set() else "ended"
        self._ended = True
        self._notify()

    def _open_and_play(self) -> tuple[bool, bool]:
        """Plays the source to its end. Whether it is to be opened again, and whether it is live."""
        before, live = self._seen, False
        try:
            with self._opener(self.address) as source:
                live, self.source_fps, source.skipped = source.live, source.fps, self.skipped
                self._play(source)
                self.error = f"{without_password(self.address)!r} ended" if live and self.reconnect else ""
                return (self.reconnect if live else self.repeat), live
        except Exception as error:  # whatever a decoder raises must not end the thread silently
            kind = "" if isinstance(error, SourceError) else f"{type(error).__name__}: "
            self.error = kind + without_password(str(error))
            if not live and self._seen > before:  # a damaged film: it can be looped as far as it goes
                return self.repeat, live
            self._refusals += isinstance(error, SourceRefused)
            given_up = not self._seen and self._refusals >= REFUSALS
            return self.reconnect and not given_up and (live or is_remote(self.address)), live

    def _play(self, source: Source) -> None:
        self._newest_only = source.live or self.realtime
        start = time.monotonic()
        # times continue where the previous connection or round ended
        began = start - self._born if self._newest_only else self._film_s
        self._early = EARLY if source.live else 0.0
        for frame in source.read(lambda time_s: self._wanted(began + time_s, 1 / source.fps)):
            if self.realtime and not source.live:
                self._stopping.wait(max(0.0, start + frame.time_s - time.monotonic()))
            if self._stopping.is_set():
                return
            self.state = "live"
            self._offer(frame, began + frame.time_s)

    def _wanted(self, time_s: float, duration_s: float) -> bool:
        """Whether the frame at `time_s` seconds from the camera's start is due at the configured rate."""
        self._seen += 1
        self._film_s = time_s + duration_s
        if self._stopping.is_set():
            return True  # lets `_play` see that it should stop
        if not self.fps:
            return True
        if time_s + 1e-3 < self._next_due - self._early / self.fps:
            return False
        # Counted from the schedule, not from this frame: else 10 of 25 fps would become 8.3. Counted from this frame
        # where the source is behind the schedule.
        self._next_due = max(self._next_due + 1 / self.fps, time_s + 1e-3)
        return True

    def _offer(self, frame: Frame, time_s: float) -> None:
        captured = time.monotonic()
        view = None if self.gate is None else self._judged(self.gate.look(frame.rgb, time_s))
        jpeg = b"" if self.raw or (view is not None and view.still) else to_jpeg(frame.rgb)
        with self._change:
            replaced = 0
            if self._newest_only and self._ready:
                replaced = self._ready.pop().replaced + 1
                self.replaced += 1
            else:
                while len(self._ready) >= AHEAD and not self._stopping.is_set():
                    self._change.wait()
            if self._stopping.is_set():
                return
            self._ready.append(CapturedFrame(self.read, time_s, frame.rgb, captured, replaced, jpeg, view))
            self.read += 1
            if not self._newest_only:  # it is taken for certain; of a live camera a newer one may replace it
                self._goes(self._ready[-1])
        self._notify()

    def _judged(self, view: View) -> View:
        """Still only in comparison with the frame whose answer stands at its turn: not where another one went
        meanwhile, nor where it takes the place of one that was to go."""
        with self._change:
            replaces = self._newest_only and bool(self._ready) and not self._ready[-1].still
            stands = not replaces and self.gate is not None and self.gate.current(view)
        return view if stands or not view.still else replace(view, still=False)

    def _goes(self, frame: CapturedFrame) -> None:
        if self.gate is not None and frame.view is not None and not frame.still:
            self.gate.sent(frame.view)

    def _notify(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._wake.set)
