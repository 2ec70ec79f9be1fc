"""Frames and the sources that are files: a video, a folder of images, or one image.

A source is an iterable of `Frame`s that decodes one frame at a time, so a film of any length needs the memory of one
frame. `clients/video/streams.py` has the live sources, `clients/video/sources.py` chooses between them.
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

from clients.video.skipped import Skipped
from ensemble.pictures import FORMATS, PictureError, decode
from ensemble.spec import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; the package runs on 3.10

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
STILLS_FPS = 1.0
"""Rate at which a folder of images is played."""

EVERY: Callable[[float], bool] = lambda time_s: True  # noqa: E731 - typed as a value, it is the default of `read`


class SourceError(ValueError):
    """A source cannot be opened or read; the message names the source and what was expected."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame: its number in the source, its time in seconds from the start, and its pixels, uint8 [H,W,3] RGB."""

    index: int
    time_s: float
    rgb: NDArray[np.uint8]


class Source(Protocol):
    """An iterable of frames. `fps` is the rate at which they were taken, `count` how many there are (None: unknown),
    and `live` says whether frames arrive at their own pace rather than on request. What cannot be decoded is left out
    and told to `skipped`, which a reader replaces by its own.
    """

    fps: float
    count: int | None
    live: bool
    skipped: Skipped

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        """The frames for whose time in seconds `wanted` is true. The others are decoded too, since later frames
        depend on them, but not converted to RGB."""
        ...

    def __iter__(self) -> Iterator[Frame]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Stills:
    """Image files in the order given. One that is no picture is left out and told to `skipped`."""

    live = False

    def __init__(self, paths: list[Path], fps: float = STILLS_FPS) -> None:
        self.paths, self.fps = paths, fps
        self.count: int | None = len(paths)
        self.skipped = Skipped()

    def __iter__(self) -> Iterator[Frame]:
        return self.read()

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        """The pictures, decoded as the server decodes files. Raises SourceError where not one of them is a picture."""
        wrong, good = "", False
        for index, path in enumerate(self.paths):
            if not wanted(index / self.fps):
                continue
            try:
                rgb = picture(path)
            except SourceError as error:
                wrong = wrong or str(error)
                self.skipped.add(str(error))
                continue
            good = True
            yield Frame(index, index / self.fps, rgb)
        if wrong and not good:
            raise SourceError(
                wrong if len(self.paths) == 1 else f"none of {len(self.paths)} files is a picture: {wrong}"
            )

    def close(self) -> None:
        """Does nothing: no file is held open between frames."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def picture(path: Path) -> NDArray[np.uint8]:
    """uint8 [H,W,3] RGB of an image file. Raises SourceError, which names the file."""
    formats = (*FORMATS, "BMP") if path.suffix.lower() == ".bmp" else FORMATS
    try:
        if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
            raise SourceError(f"{str(path)!r}: at most {MAX_IMAGE_BYTES >> 20} MB, got {size / 2**20:.0f} MB")
        return np.asarray(decode(path.read_bytes(), formats))
    except OSError as error:
        raise SourceError(f"{str(path)!r} cannot be read ({error.strerror or error})") from error
    except PictureError as error:
        raise SourceError(f"{str(path)!r} is not an image: {error}") from error


class Video:
    """The first video stream of a file, decoded frame by frame. Raises SourceError for what FFmpeg cannot open."""

    live = False

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.skipped = Skipped()
        try:
            self._container = self._open()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(
                f"{without_password(path)!r} is not a video that FFmpeg can open ({without_password(str(error))})"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{without_password(path)!r} has no video stream")
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
            for decoded in self._container.decode(self._stream):
                time_s = decoded.time if decoded.time is not None else index / self.fps
                if wanted(time_s):
                    yield Frame(index, time_s, upright(decoded))
                index += 1
        except av.FFmpegError as error:
            raise SourceError(
                f"{without_password(self.path)!r} cannot be decoded after {index} frames"
                f" ({without_password(str(error))})"
            ) from error
        if not index:
            raise SourceError(f"{without_password(self.path)!r} holds no frames")

    def close(self) -> None:
        """Closes the file; iterating afterwards fails."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def without_password(address: Path | str) -> str:
    """The address for messages and logs: without a camera's user name and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", str(address))


def upright(decoded: av.VideoFrame) -> NDArray[np.uint8]:
    """uint8 [H,W,3] RGB. Phones record sideways and store the rotation in degrees counterclockwise."""
    rgb: NDArray[Any] = decoded.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, decoded.rotation // 90)) if decoded.rotation else rgb
