"""Fixtures of the client tests: responses and films with known contents, and ports that misbehave."""

from __future__ import annotations

import http.server
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clients.detections import Detections
from clients.message import parse_response
from clients.video.encode import VideoWriter
from ensemble.spec import STAGES, Variant

SMALL = Variant(252)
RTSP_PACKAGES = (
    "apt-get install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly python3-gi"
)


@pytest.fixture(scope="session")
def film_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A drawn film of so many frames at 10 fps, with objects that can be seen from the first one on."""
    from export.tiny.video.evaluate import held_out_video

    def make(frames: int) -> Path:
        path = tmp_path_factory.mktemp("films") / "yard.mp4"
        with VideoWriter(path, 10.0) as writer:
            for frame in held_out_video(3, frames).frames:
                writer.write(frame)
        return path

    return make


@pytest.fixture
def response() -> Callable[..., dict[str, np.ndarray]]:
    """Makes the arrays of a response as they are transmitted: with a leading 1 and the specification's dtypes."""

    def make(
        count: int = 2, masks: np.ndarray | None = None, rle: list[bytes] | None = None, **other: Any
    ) -> dict[str, np.ndarray]:
        boxes = np.array([[0.25, 0.25, 0.5, 0.75], [0.5, 0.0, 1.0, 0.5], [0.0, 0.6, 0.2, 1.0]], np.float32)[:count]
        empty = np.zeros((0, SMALL.mask_size, SMALL.mask_row_bytes), np.uint8)
        arrays = {
            "boxes": boxes,
            "scores": np.array([0.9, 0.6, 0.1], np.float32)[:count],
            "class_ids": np.array([1, 0, 1], np.int32)[:count],
            "presence": np.array([0.7, 0.99], np.float32),
            "mask_bits": empty if masks is None else np.packbits(masks, axis=2),
            "mask_rle": np.array(rle or [], dtype=object),
            "frame_size": np.array([360, 640], np.int32),
            "stage_ms": np.arange(len(STAGES), dtype=np.float32),
            "batch": np.array([3], np.int32),
        }
        return {name: array[None] for name, array in (arrays | other).items()}

    return make


@pytest.fixture
def detections(response: Callable[..., dict[str, np.ndarray]]) -> Callable[..., Detections]:
    """Makes `Detections` of the classes `blue square` and `red circle`."""

    def make(count: int = 2, **other: Any) -> Detections:
        return parse_response(
            response(count, **other).get, ["blue square", "red circle"], model=SMALL.front_name, latency_ms=12.5
        )

    return make


@pytest.fixture
def masks() -> np.ndarray:
    """bool [2,72,72]: a filled box and a disc."""
    y, x = np.mgrid[: SMALL.mask_size, : SMALL.mask_size]
    box = (x >= 18) & (x < 36) & (y >= 18) & (y < 54)
    disc = (x - 54) ** 2 + (y - 18) ** 2 < 15**2
    return np.stack([box, disc])


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """An H.264 file of six frames at 12 fps, 96x64, frame i uniformly grey at 30 i."""
    path = tmp_path / "film.mp4"
    with VideoWriter(path, fps=12) as writer:
        for i in range(6):
            writer.write(np.full((64, 96, 3), 30 * i, np.uint8))
    return path


@pytest.fixture
def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (120, 130, 140)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never sends anything."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield int(s.getsockname()[1])


@pytest.fixture
def rtsp() -> Iterator[list[str]]:
    """Addresses of two cameras of a real RTSP server."""
    needs = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    for python in (sys.executable, "/usr/bin/python3", shutil.which("python3")):
        if python and subprocess.run([python, "-c", needs], capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip(f"no RTSP server here: {RTSP_PACKAGES}")
    program = [python, str(Path(__file__).with_name("video") / "rtsp_server.py"), "2"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield [server.stdout.readline().strip() for _ in range(2)]
        server.terminate()


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """An HTTP server that records what is posted and refuses the first `refuse[0]` posts: (url, posts, refuse)."""
    posts, refuse = [], [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            refuse[0] -= 1
            if refuse[0] < 0:
                posts.append(body)
            self.send_response(500 if refuse[0] >= 0 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", posts, refuse
        server.shutdown()
