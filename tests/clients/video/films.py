"""Films of every kind, encoded here: any container, codec, size, clock."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

CONTAINERS = {"ts": "mpegts", "mkv": "matroska", "mpg": "mpeg"}
"""FFmpeg's names where they are not the suffix."""
TICKS = 90_000
"""Of the clock in which `encoded` gives times, a second."""


def grey(level: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """uint8 [H,W,3], all of one level."""
    return np.full((*size, 3), level % 256, np.uint8)


def noise(seed: int, size: tuple[int, int] = (96, 128)) -> NDArray[np.uint8]:
    """uint8 [H,W,3] that compresses badly, so that a film of it is large."""
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)


def encoded(
    pictures: Sequence[NDArray[np.uint8]],
    suffix: str = "ts",
    codec: str = "mpeg2video",
    *,
    fps: float = 10,
    start_s: float = 0.0,
    times: Sequence[float] | None = None,
    pix_fmt: str = "yuv420p",
    gop: int = 5,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    audio: bool = False,
    title: str = "",
) -> bytes:
    """The bytes of a film whose clock begins at `start_s`, or with the `times` in seconds. `audio` adds a second of
    silence for each second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=CONTAINERS.get(suffix, suffix), options=options or {}) as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        out.metadata.update({"title": title, "service_name": title} if title else {})
        context = stream.codec_context
        if codec == "libx264":
            context.options = {"preset": "ultrafast"}
        if codec == "libx265":  # else it fills the screen
            context.options = {"x265-params": "log-level=none"}
        context.gop_size, context.max_b_frames = gop, b_frames
        if times:
            context.time_base = Fraction(1, TICKS)
        sound = out.add_stream("mp2", rate=48000, layout="mono") if audio else None
        for i, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pix_fmt)
            if times:
                frame.pts, frame.time_base = round(times[i] * TICKS), Fraction(1, TICKS)
            else:
                frame.pts, frame.time_base = i + round(start_s * fps), 1 / Fraction(fps).limit_denominator(1001)
            out.mux(stream.encode(frame))
            if sound is not None:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, round(48000 / fps)), np.int16), "s16", "mono")
                silence.sample_rate, silence.pts = 48000, round((i / fps + start_s) * 48000)
                silence.time_base = Fraction(1, 48000)
                out.mux(sound.encode(silence))
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return buffer.getvalue()
