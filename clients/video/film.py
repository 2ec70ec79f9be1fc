"""Video files, decoded frame by frame.

A film that is damaged goes on behind the damage: what cannot be decoded is left out, counted and named (`skipped`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.format import Flags

from clients.redact import without_password
from clients.video.address import open_container
from clients.video.clock import FilmClock
from clients.video.decode import NoFilm, choose, frames, rate, reason, upright
from clients.video.frames import EVERY, Frame, SourceError
from clients.video.skipped import Skipped

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; the package runs on 3.10

LONGEST_STEP_S, LONGEST_JUMPY_STEP_S = 60.0, 10.0
"""Between two frames of a film; more is a clock that was set. The second is for containers whose clocks are known to
jump, such as transport streams; FFmpeg's own tools take the same 10 s for these."""


class Video:
    """A video file, over and over: each iteration begins at its start. Raises SourceError for what FFmpeg cannot open.

    `fps` is its likely rate, `count` its number of frames if the container says so.
    """

    live = False

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.name = repr(without_password(path))
        self.skipped = Skipped()
        self.index = 0
        self._used = self._closed = False
        self._start()
        self.fps = rate(self._container, self._stream)
        self.count: int | None = self._stream.frames or None

    def _start(self) -> None:
        """Opens the container at its first packet."""
        try:
            self._container = self._open()
        except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
            raise self._refusal(error) from error
        try:
            self._stream = choose(self._container)
        except NoFilm as error:
            self._container.close()
            raise SourceError(f"{self.name} {_unfinished(Path(self.path)) or error}") from error
        self._stream.thread_type = "AUTO"

    def _open(self) -> av.container.InputContainer:
        return open_container(str(self.path))

    def _refusal(self, error: Exception) -> SourceError:
        why = _unfinished(Path(self.path)) or f"is not a video that FFmpeg can open ({reason(error)})"
        return SourceError(f"{self.name} {why}")

    def __iter__(self) -> Iterator[Frame]:
        return self.read()

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        """The frames in their order. Raises SourceError, with the number of frames before, where the file cannot be
        read any further, and where not one frame can be decoded."""
        if self._closed:
            raise ValueError(f"{self.name} was closed")
        if self._used:  # opened again: not every container can be wound back
            self._container.close()
            self._start()
        self._used = True
        yield from self._film(wanted)
        if not self.index:
            raise SourceError(f"{self.name} holds no frame that can be decoded{self._first_fault()}")

    def _film(self, wanted: Callable[[float], bool]) -> Iterator[Frame]:
        jumpy = Flags(self._container.format.flags) & Flags.ts_discont
        clock = FilmClock(self.fps, LONGEST_JUMPY_STEP_S if jumpy else LONGEST_STEP_S)
        self.index = 0
        try:
            for decoded in frames(self._container, self._stream, self._skip, strict=True):
                time_s = clock.seconds(decoded.time)
                if decoded.is_corrupt:
                    self._skip("the next frame could be decoded only in part")
                else:
                    yield from self._frame(decoded, time_s, wanted)
        except (av.FFmpegError, OSError) as error:
            raise SourceError(
                f"{self.name} cannot be read any further after {self.index} frames ({reason(error)})"
            ) from error

    def _frame(self, decoded: av.VideoFrame, time_s: float, wanted: Callable[[float], bool]) -> Iterator[Frame]:
        """The frame if it is wanted and has pixels."""
        if wanted(time_s):
            try:
                rgb = upright(decoded)
            except (av.FFmpegError, ValueError, MemoryError) as error:
                self._skip(f"the frame has no colours that can be read ({reason(error)})")
                return
            yield Frame(self.index, time_s, rgb)
        self.index += 1

    def _skip(self, what: str) -> None:
        self.skipped.add(f"{self.name} after {self.index} frames: {what}")

    def _first_fault(self) -> str:
        return f": {next(iter(self.skipped.why))}" if self.skipped.why else ""

    def close(self) -> None:
        """Closes the file; iterating afterwards fails."""
        self._closed = True
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unfinished(path: Path) -> str:
    """Why a file is none, where that can be seen without FFmpeg: it is empty, or an MP4 that was never completed."""
    try:
        if not path.is_file():
            return ""
        if not (size := path.stat().st_size):
            return "is an empty file"
        kinds: list[bytes] = []
        start = 0
        with path.open("rb") as file:
            while start + 8 <= size and len(kinds) < 1000:
                file.seek(start)
                head = file.read(16)
                length = int.from_bytes(head[:4], "big")
                start += max(int.from_bytes(head[8:16], "big") if length == 1 else length, 8)
                kinds += [head[4:8]] if start <= size else []
    except OSError:
        return ""
    if kinds and kinds[0] == b"ftyp" and b"moov" not in kinds:
        return "is an MP4 without its index ('moov'): it was cut short, or its recording is not finished"
    return ""
