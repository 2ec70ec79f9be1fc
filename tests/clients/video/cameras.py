"""Cameras that misbehave on purpose: a loopback port that sends an MPEG transport stream, as often as somebody
connects."""

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
    """MPEG-2 video, `frames` grey pictures of each size (height, width) one after the other, as a camera that is set
    anew sends."""
    whole = b""
    for part, (height, width) in enumerate(sizes):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mpegts") as out:
            stream = out.add_stream("mpeg2video", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = Fraction(1, fps)
            for i in range(frames):
                picture = av.VideoFrame.from_ndarray(
                    np.full((height, width, 3), 20 * (i % 10) + 20, np.uint8), format="rgb24"
                )
                picture.pts = part * frames + i
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
        whole += buffer.getvalue()
    return whole


class FakeCamera:
    """Serves `act(connection, n)` to the n-th who connects, in a thread; closes the connection afterwards."""

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
