"""Frames and where they come from: a video file, a folder of images, or one image (`clients/video/streams.py` has the
live sources).

A path flows in, `Frame`s flow out one by one in RGB, so that a film of any length takes the memory of one frame. Every
source is an iterator with a rate and an end to close. Decoding blocks and live sources fail: `clients/video/reader.py`
gives each camera a thread for the one and starts again after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; the package runs on 3.10

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
STILLS_FPS = 1.0
"""Rate at which a folder of images is played back."""


EVERY: Callable[[float], bool] = lambda time_s: True  # noqa: E731 - typed as a value, it is the default of `read`


class SourceError(ValueError):
    """A source that cannot be opened or read; the message names the file and what was expected."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture: its number in the source, its time in seconds from the start, and its pixels, uint8 [H,W,3] RGB."""

    index: int
    time_s: float
    rgb: NDArray[np.uint8]


class Source(Protocol):
    """An iterator of frames. `fps` is the rate they were taken at; `count` how many there are, None where nobody can
    say; `live` whether frames come when they happen and not when they are asked for.
    """

    fps: float
    count: int | None
    live: bool

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        """The frames whose time in seconds is `wanted`: the others are decoded, since later ones need them, but not
        converted."""
        ...

    def __iter__(self) -> Iterator[Frame]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Stills:
    """Image files in the order given."""

    live = False

    def __init__(self, paths: list[Path], fps: float = STILLS_FPS) -> None:
        self.paths, self.fps = paths, fps
        self.count: int | None = len(paths)

    def __iter__(self) -> Iterator[Frame]:
        return self.read()

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            if not wanted(index / self.fps):
                continue
            try:
                with Image.open(path) as image:
                    rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            except (OSError, UnidentifiedImageError) as error:
                raise SourceError(f"{str(path)!r} is not an image that Pillow can read ({error})") from error
            yield Frame(index, index / self.fps, rgb)

    def close(self) -> None:
        """Nothing is held open between frames."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Video:
    """The first video stream of a file, decoded frame by frame."""

    live = False

    def __init__(self, path: Path | str) -> None:
        self.path = path
        try:
            self._container = self._open()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{public(path)!r} is not a video that FFmpeg can open ({public(str(error))})") from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{public(path)!r} has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.fps = float(self._stream.average_rate or 25)
        self.count: int | None = self._stream.frames or None

    def _open(self) -> av.container.InputContainer:
        return av.open(str(self.path))

    def __iter__(self) -> Iterator[Frame]:
        """From the start each time. Raises SourceError, with the number of good frames, where the file is damaged."""
        return self.read()

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        self._container.seek(0)
        index = 0
        try:
            for picture in self._container.decode(self._stream):
                time_s = picture.time if picture.time is not None else index / self.fps
                if wanted(time_s):
                    yield Frame(index, time_s, upright(picture))
                index += 1
        except av.FFmpegError as error:
            raise SourceError(
                f"{public(self.path)!r} cannot be decoded after {index} frames ({public(str(error))})"
            ) from error
        if not index:
            raise SourceError(f"{public(self.path)!r} holds no frames")

    def close(self) -> None:
        """Closes the file; iterating afterwards fails."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def public(address: Path | str) -> str:
    """The address as it may stand in messages and logs: without the user and the password of a camera."""
    return re.sub(r"(?<=://)[^/@]*@", "", str(address))


def upright(picture: av.VideoFrame) -> NDArray[np.uint8]:
    """uint8 [H,W,3] RGB; phones film sideways and note by how many degrees counterclockwise to turn."""
    rgb: NDArray[Any] = picture.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, picture.rotation // 90)) if picture.rotation else rgb
