"""Frames out of a container, past what is damaged: which of its streams is the film, and its decoded frames.

A packet that cannot be decoded is left out and told, and the film goes on, as players do it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from av.stream import Discard, Disposition
from numpy.typing import NDArray

from clients.video.clock import likely_rate
from ensemble.spec import MAX_IMAGE_PIXELS

NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails
"""Streams that are a cover or previews of a film."""
BAD_READS = 50
"""Reads in a row that find no packet; the container may become readable again behind a damaged stretch."""
FLUSHES = 32
"""Frames that a decoder may still hold when one of them turns out to be broken."""


class NoFilm(ValueError):  # noqa: N818 - the name says what is wrong
    """A container without a film that can be decoded; the message says what is in it."""


def reason(error: BaseException) -> str:
    """What went wrong in FFmpeg's words, without its numbers and without the address."""
    return str(getattr(error, "strerror", None) or error)


def choose(container: av.container.InputContainer) -> av.VideoStream:
    """The film: FFmpeg's choice among the streams that are no covers, else the one with most pixels. All other streams
    are left unread. Raises NoFilm.
    """
    videos = list(container.streams.video)
    films = [s for s in videos if not s.disposition & NO_FILM]
    readable = [s for s in films if s.codec_context is not None]
    if not readable:
        if films:
            raise NoFilm("has video in a format that FFmpeg cannot decode here")
        kinds = sorted({str(s.type) for s in container.streams} - {"video"})
        cover, beside = ", only a cover picture" if videos else "", f" (it has {', '.join(kinds)})" if kinds else ""
        raise NoFilm(f"has no video{cover}{beside}")
    best = container.streams.best("video")
    stream = next((s for s in readable if best is not None and s.index == best.index), None)
    stream = stream or max(readable, key=lambda s: s.codec_context.width * s.codec_context.height)
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    # else a damaged header of 300 bytes asks for gigabytes
    stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}
    return stream


def rate(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Frames per second: what the stream says where that can be true, else its frames by its length."""
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    counted = stream.frames / seconds if seconds > 0 else None
    told = (float(r) if r else None for r in (stream.average_rate, counted, stream.guessed_rate))
    return likely_rate(told)


def frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    skip: Callable[[str], None],
    fruitless: Callable[[int, float], None] = lambda packets, seconds: None,
    strict: bool = False,
) -> Iterator[av.VideoFrame]:
    """All frames that can be decoded. `skip` is told what could not be; `fruitless` hears how many packets came, and
    for how many seconds, without a frame, and may raise. `strict` also tells what came damaged and could be decoded.

    Raises av.FFmpegError or OSError where the container cannot be read any further.
    """
    empty, since, begun = 0, time.monotonic(), False
    for packet in _packets(container, stream, skip):
        found = False
        for decoded in _decoded(packet, skip):
            found = begun = True
            yield decoded
        if strict and begun and packet.is_corrupt:  # before the first frame: a film that was cut out of another one
            skip("packets are missing")
        empty = 0 if found else empty + 1
        since = time.monotonic() if found else since
        if empty:
            fruitless(empty, time.monotonic() - since)


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, skip: Callable[[str], None]
) -> Iterator[av.Packet]:
    bad, packets = 0, container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.BlockingIOError:  # a device that has no frame yet
            time.sleep(0.01)
            packets = container.demux(stream)
            continue
        except av.error.InvalidDataError as error:
            bad += 1
            if bad >= BAD_READS:
                raise
            skip(f"a stretch could not be read ({reason(error)})")
            packets = container.demux(stream)
            continue
        bad = 0
        yield packet


def _decoded(packet: av.Packet, skip: Callable[[str], None]) -> Iterator[av.VideoFrame]:
    last = packet.size == 0  # asks the decoder for what it still holds
    if last and packet.dts is not None:
        return  # an empty packet in mid-film, as AVI repeats a frame: to a decoder it would be the end
    for _ in range(FLUSHES if last else 1):
        try:
            pictures = packet.decode()
        except EOFError:
            return
        except (av.FFmpegError, MemoryError) as error:
            skip(f"a packet could not be decoded ({reason(error)})")
            continue
        yield from pictures  # type: ignore[misc]
        return


def upright(decoded: av.VideoFrame) -> NDArray[np.uint8]:
    """uint8 [H,W,3] RGB. Phones record sideways and store the rotation in degrees counterclockwise."""
    rgb: NDArray[Any] = decoded.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, decoded.rotation // 90)) if decoded.rotation else rgb
