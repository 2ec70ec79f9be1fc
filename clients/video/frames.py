"""Frames, what a source of them is, and the sources that are pictures: a folder of images, or one image.

A source is an iterable of `Frame`s that decodes one frame at a time, so a film of any length needs the memory of one
frame. `clients/video/film.py` has video files, `clients/video/streams.py` the live sources, `clients/video/sources.py`
chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.redact import without_password
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
    """A source cannot be opened or read; the message names the source, without a password, and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


class SourceRefused(SourceError):  # noqa: N818 - the name says what happened
    """The other side answers, and says that it will not give this: a wrong path, or a wrong password."""


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
