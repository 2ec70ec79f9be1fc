"""Cameras that misbehave: each connection plays a few seconds of one kind of trouble that cameras and networks make.

A camera is a TCP port of this machine that sends an MPEG transport stream to whoever connects, as a network camera does
behind a relay: `tcp://127.0.0.1:<port>`. Its troubles follow each other in a fixed order, one for each connection, and
begin at another one for each camera.
"""

from __future__ import annotations

import contextlib
import io
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from PIL import Image, ImageDraw

FPS = 10
SECONDS = 6.0
"""Of film in one piece."""
PIECES = 40
"""Parts in which a piece is sent; a camera sends evenly unless its trouble is that it does not."""
SMALL, LARGE = (240, 320), (312, 416)
"""Height and width of frames before and after a camera's settings change."""
FAR_S = 3000.0
"""A clock that is wrong is wrong by so much."""
SILENCE_S = 8.0
"""Longer than a client waits for a live source."""
PACKET = 188
"""Bytes of a transport stream's packet."""


@lru_cache(maxsize=64)
def film(size: tuple[int, int] = SMALL, start_s: float = 0.0) -> bytes:
    """`SECONDS` of a red disc that moves over grey, as an MPEG transport stream whose clock begins at `start_s`."""
    buffer = io.BytesIO()
    height, width = size
    with av.open(buffer, "w", format="mpegts") as out:
        stream = out.add_stream("mpeg2video", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = FPS // 2, 0
        stream.codec_context.bit_rate = 2_000_000
        stream.codec_context.time_base = Fraction(1, FPS)
        for i in range(round(SECONDS * FPS)):
            image = Image.new("RGB", (width, height), (90, 95, 90))
            left = 20 + 2 * i
            ImageDraw.Draw(image).ellipse((left, 60, left + 90, 150), fill=(220, 40, 40))
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            frame.pts, frame.time_base = i + round(start_s * FPS), Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


class Line:
    """One connection, as the troubles use it: they may send, wait and end; `ending` ends them early."""

    def __init__(self, connection: socket.socket, ending: threading.Event, rng: random.Random) -> None:
        self._connection, self._ending, self.rng = connection, ending, rng

    def wait(self, seconds: float) -> None:
        if self._ending.wait(seconds):
            raise ConnectionAbortedError("the camera was switched off")

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def play(self, *films: bytes) -> None:
        """Sends each film evenly over its own time."""
        for data in films:
            step = -(-len(data) // PIECES)
            for start in range(0, len(data), step):
                self.send(data[start : start + step])
                self.wait(SECONDS / PIECES)

    def begin(self, clock_s: float = 0.0) -> float:
        """Two good pieces, of which a client needs the first to see what it gets; returns the clock after them."""
        self.play(film(start_s=clock_s), film(start_s=clock_s + SECONDS))
        return clock_s + 2 * SECONDS

    def noise(self, count: int) -> bytes:
        return self.rng.randbytes(count)


def _steady(line: Line) -> None:
    line.play(film(start_s=line.begin()))


def _clock_jumps_ahead(line: Line) -> None:
    now = line.begin()
    line.play(film(start_s=now + FAR_S), film(start_s=now + SECONDS))


def _clock_jumps_back(line: Line) -> None:
    line.begin(FAR_S)
    line.play(film(), film(start_s=SECONDS))


def _clock_begins_late(line: Line) -> None:
    line.begin(2 * 3600.0)


def _comes_in_bursts(line: Line) -> None:
    now = line.begin()
    for i in range(3):
        line.send(film(start_s=now + i * SECONDS))
        line.wait(SECONDS)


def _packets_are_lost(line: Line) -> None:
    now = line.begin()
    data = film(start_s=now)
    packets = [data[i : i + PACKET] for i in range(0, len(data), PACKET)]
    line.play(b"".join(p for p in packets if line.rng.random() > 0.03), film(start_s=now + SECONDS))


def _packets_are_damaged(line: Line) -> None:
    now = line.begin()
    data = bytearray(film(start_s=now))
    for _ in range(40):
        start = line.rng.randrange(len(data) - 60)
        data[start : start + 60] = line.noise(60)
    line.play(bytes(data), film(start_s=now + SECONDS))


def _size_changes(line: Line) -> None:
    now = line.begin()
    line.play(film(LARGE, now), film(start_s=now + SECONDS))


def _falls_silent(line: Line) -> None:
    line.begin()
    line.wait(SILENCE_S)


def _breaks_off(line: Line) -> None:
    data = film(start_s=line.begin())
    line.play(data[: len(data) // 2 - 77])


def _sends_garbage(line: Line) -> None:
    for _ in range(20):
        line.send(line.noise(20_000))
        line.wait(0.1)


def _hangs_up_at_once(line: Line) -> None:
    """Nothing is sent."""


def _says_nothing(line: Line) -> None:
    line.wait(SILENCE_S + 4)


def _trickles(line: Line) -> None:
    data = film()
    for i in range(100):
        line.send(data[i * 40 : i * 40 + 40])
        line.wait(0.1)


TROUBLES: dict[str, Callable[[Line], None]] = {
    trouble.__name__.strip("_").replace("_", " "): trouble
    for trouble in (
        _steady,
        _clock_jumps_ahead,
        _comes_in_bursts,
        _clock_jumps_back,
        _packets_are_lost,
        _size_changes,
        _breaks_off,
        _clock_begins_late,
        _packets_are_damaged,
        _falls_silent,
        _sends_garbage,
        _hangs_up_at_once,
        _says_nothing,
        _trickles,
    )
}
"""Name of a trouble -> what a camera that has it does with a connection."""


class MisbehavingCamera:
    """A camera at `address`; `played` counts its connections by trouble. `first` is the trouble that it begins with."""

    def __init__(self, first: int, seed: int = 0) -> None:
        self.played: Counter[str] = Counter()
        self._turn, self._rng = first, random.Random(seed * 1000 + first)
        self._ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, name=f"camera {first}", daemon=True).start()

    def close(self) -> None:
        self._ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        names = list(TROUBLES)
        with contextlib.suppress(OSError):  # the listener was closed
            while not self._ending.is_set():
                connection, _ = self._listener.accept()
                name = names[self._turn % len(names)]
                self._turn += 1
                self.played[name] += 1
                line = Line(connection, self._ending, random.Random(self._rng.random()))
                threading.Thread(target=_act, args=(TROUBLES[name], connection, line), daemon=True).start()


def _act(trouble: Callable[[Line], None], connection: socket.socket, line: Line) -> None:
    with connection, contextlib.suppress(OSError):  # whoever looks may go at any time
        connection.settimeout(60.0)
        trouble(line)
