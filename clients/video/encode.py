"""Encoders: JPEG for frames that are sent to the server, H.264 for annotated videos.

Over the network a JPEG is cheaper than raw pixels: a 1080p frame is a tenth of the size.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; the package runs on 3.10

JPEG_QUALITY = 90
H264_OPTIONS = {"crf": "20", "preset": "veryfast"}


def to_jpeg(rgb: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """A JPEG file of uint8 [H,W,3] RGB."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class VideoWriter:
    """An H.264 file of RGB frames that all have one size. A context manager: an unclosed file cannot be played.

    `fps` is the rate at which the file is played, `size` its width and height (None before the first frame).
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path = Path(path)
        self.fps = fps
        self.frames = 0
        self.size: tuple[int, int] | None = None
        self._container: av.container.OutputContainer | None = None

    def write(self, rgb: NDArray[np.uint8]) -> None:
        """Appends uint8 [H,W,3]. Raises ValueError if the size differs from the first frame's."""
        # yuv420p halves both sides, so an odd last row or column is dropped
        height, width = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
        if self._container is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self.path), "w")
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options=H264_OPTIONS)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self.size = width, height
        if (width, height) != self.size:
            raise ValueError(
                f"a video has one frame size: expected {self._stream.width}x{self._stream.height}, got {width}x{height}"
            )
        pixels = np.ascontiguousarray(rgb[:height, :width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        self.frames += 1

    def close(self) -> None:
        """Flushes the encoder and completes the file. Without frames there is no file."""
        if self._container is not None:
            container, self._container = self._container, None
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
