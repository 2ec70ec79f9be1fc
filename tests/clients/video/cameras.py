"""Faulty cameras: a local port that sends an MPEG transport stream to everyone who connects."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np


def transport_stream(sizes: Sequence[tuple[int, int]], frames: int = 10, fps: int = 20) -> bytes:
    """MPEG-2 video with `frames` grey frames of each size (height, width), as from a camera whose settings change."""
    whole = b""
    for part, (height, width) in enumerate(sizes):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mpegts") as out:
            stream = out.add_stream("mpeg2video", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = Fraction(1, fps)
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(
                    np.full((height, width, 3), 20 * (i % 10) + 20, np.uint8), format="rgb24"
                )
                frame.pts = part * frames + i
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        whole += buffer.getvalue()
    return whole


class FakeCamera:
    """Calls `act(connection, n)` for the n-th connection, in a thread, and closes it afterwards."""

    def __init__(self, act: Callable[[socket.socket, int], None]) -> None:
        self.visits, self._act = 0, act
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.visits += 1
                with connection, contextlib.suppress(OSError):
                    self._act(connection, self.visits)

    def __enter__(self) -> FakeCamera:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
