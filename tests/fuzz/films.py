"""Good films of every container, small and drawn here, and what looks like a film and is none."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.clients.video.films import CONTAINERS, encoded, grey, noise
from tests.fuzz.files import Maker
from tests.fuzz.picture_files import nothing

FRAMES = 14
LARGE = (7000, 7000)
"""Height and width of the largest film."""


@cache
def _film(suffix: str, codec: str, options: tuple[tuple[str, str], ...], how: tuple[tuple[str, Any], ...]) -> bytes:
    pictures = [noise(i, (48, 64)) if i % 2 else grey(15 * i) for i in range(FRAMES)]
    return encoded(pictures, suffix, codec, options=dict(options), **dict(how))


def film(suffix: str, codec: str, options: Mapping[str, str] | None = None, **how: Any) -> Maker:
    """A film of `FRAMES` frames, half of them noise; `options` are the container's, `how` is `encoded`'s."""
    return lambda rng: _film(suffix, codec, tuple((options or {}).items()), tuple(how.items()))


@cache
def two_tracks(suffix: str, sizes: tuple[int, ...] = (48, 96)) -> bytes:
    """Two films of different sizes in one file, frame by frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=CONTAINERS.get(suffix, suffix)) as out:
        tracks = []
        for side in sizes:
            track = out.add_stream("mpeg4", rate=10)
            track.width = track.height = side
            track.pix_fmt = "yuv420p"
            tracks.append(track)
        for i in range(FRAMES):
            for track, side in zip(tracks, sizes, strict=True):
                frame = av.VideoFrame.from_ndarray(noise(i, (side, side)), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                out.mux(track.encode(frame))
        for track in tracks:
            out.mux(track.encode(None))
    return buffer.getvalue()


@cache
def sound(suffix: str, codec: str) -> bytes:
    """A second of silence and no film."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=CONTAINERS.get(suffix, suffix)) as out:
        track = out.add_stream(codec, rate=48_000, layout="mono")
        for i in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 4800 * i, Fraction(1, 48_000)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return buffer.getvalue()


@cache
def large() -> bytes:
    """Two frames of 49 megapixels, which a file of some hundred kilobytes holds."""
    return encoded([grey(90, LARGE)] * 2, "mkv", "mpeg4")


def animation(rng: random.Random) -> bytes:
    """A GIF, which FFmpeg plays as a film."""
    stills = [Image.fromarray(grey(30 * i)) for i in range(5)]
    stream = io.BytesIO()
    stills[0].save(stream, "GIF", save_all=True, append_images=stills[1:], duration=rng.choice((0, 1, 100, 65_000)))
    return stream.getvalue()


def joined(rng: random.Random) -> bytes:
    """Two films of any kinds, end to end."""
    names = [name for name in KINDS if name not in ("joined", "large", "nothing")]
    return KINDS[rng.choice(names)][1](rng) + KINDS[rng.choice(names)][1](rng)


PIECES = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
KINDS: dict[str, tuple[str, Maker]] = {
    "MP4": (".mp4", film("mp4", "libx264")),
    "MP4 with B-frames": (".mp4", film("mp4", "libx264", b_frames=2)),
    "MP4 in pieces": (".mp4", film("mp4", "libx264", PIECES)),
    "MP4 with sound": (".mp4", film("mp4", "mpeg4", audio=True)),
    "MP4, H.265": (".mp4", film("mp4", "libx265")),
    "QuickTime": (".mov", film("mov", "mjpeg", pix_fmt="yuvj420p")),
    "Matroska": (".mkv", film("mkv", "libx264", b_frames=2)),
    "Matroska, lossless": (".mkv", film("mkv", "ffv1")),
    "WebM": (".webm", film("webm", "libvpx")),
    "WebM, VP9": (".webm", film("webm", "libvpx-vp9")),
    "AVI": (".avi", film("avi", "mpeg4")),
    "AVI of JPEGs": (".avi", film("avi", "mjpeg", pix_fmt="yuvj420p")),
    "AVI, uncompressed": (".avi", film("avi", "rawvideo", pix_fmt="bgr24")),
    "transport stream": (".ts", film("ts", "libx264")),
    "transport stream with sound": (".ts", film("ts", "mpeg2video", audio=True)),
    "program stream": (".mpg", film("mpg", "mpeg2video")),
    "raw H.264": (".h264", film("h264", "libx264")),
    "raw H.265": (".h265", film("hevc", "libx265")),
    "Flash": (".flv", film("flv", "flv1")),
    "Windows Media": (".wmv", film("asf", "wmv2")),
    "GIF": (".gif", animation),
    "two tracks": (".mkv", lambda rng: two_tracks(rng.choice(("mkv", "mp4", "ts", "avi")))),
    "joined": (".ts", joined),
    "sound": (".mp4", lambda rng: sound(*rng.choice((("mp4", "aac"), ("ts", "mp2"), ("mkv", "pcm_s16le"))))),
    "nothing": (".mp4", nothing),
    "large": (".mkv", lambda rng: large()),
}
WHOLE = {"sound": "refused", "nothing": "", "joined": ""}
"""What comes of files of these kinds, even where nothing is wrong with them."""
