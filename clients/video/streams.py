"""Live video, network cameras and webcams, and films on web servers.

Lost and broken packets are skipped, silence ends in an error, and the frame size may change. Reconnecting is the task
of `clients/video/reader.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO

import av
from av.format import Flags

from clients.video.address import SEGMENTED, download, open_address, open_as_jpegs, open_container, refusal, scheme
from clients.video.clock import FilmClock, Pace
from clients.video.decode import choose, frames, reason
from clients.video.film import LONGEST_JUMPY_STEP_S, Video
from clients.video.frames import EVERY, Frame, SourceError, SourceRefused

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp", "webcam")
"""Schemes that are always live; http(s) is live where the stream has neither a duration nor a size."""
BURSTING_SCHEMES = ("http", "https", "tcp", "rtmp", "rtmps")
"""Byte streams, in which frames pile up and then come at once. What is not read of them at once is not lost."""
BAD_PACKETS, BAD_S = 100, 20.0
"""A live stream may lose packets, and begin long before a key frame; so many without a frame, for so long, are no
video."""


class Stream(Video):
    """A network stream or a webcam (`webcam:0` is /dev/video0, or the first camera of macOS).

    Live unless it is a file on a web server. A live stream cannot start over. Its times are those of this machine's
    clock, in seconds from when `read` was called: cameras' clocks are set, jump, or tell nothing.

    `transport` is what RTSP is asked for (None: TCP, else UDP), `pause` waits so many seconds.
    """

    def __init__(
        self, address: str, transport: str | None = None, pause: Callable[[float], object] = time.sleep
    ) -> None:
        self._transport, self._pause = transport, pause
        self._whole: IO[bytes] | None = None
        super().__init__(address)
        self.live = self._is_live()
        if self.live:
            self.count = None
            self._stream.thread_type = "SLICE"  # frame threading would hold back one frame per thread

    @property
    def is_snapshot(self) -> bool:
        """Whether the address gives one picture and ends: a camera that is asked for each."""
        # FFmpeg's formats of single pictures: jpeg_pipe, png_pipe, ...
        return scheme(str(self.path)) in ("http", "https") and self._container.format.name.endswith("_pipe")

    def _is_live(self) -> bool:
        if scheme(str(self.path)) in LIVE_SCHEMES:
            return True
        kind = self._container.format.name
        sized = self._container.size > 0 and kind not in (*SEGMENTED, "mpjpeg")  # some cameras claim 2 GB of JPEGs
        return not self._container.duration and not sized

    def _open(self) -> av.container.InputContainer:
        if self._whole is not None:
            self._whole.seek(0)
            return open_container(self._whole)
        try:
            return open_address(str(self.path), self._transport)
        except av.error.InvalidDataError:
            if scheme(str(self.path)) in ("http", "https") and (container := self._jpegs()):
                return container
            raise

    def _refusal(self, error: Exception) -> SourceError:
        if why := refusal(error):
            return SourceRefused(f"{self.name} cannot be had: {why}")
        if isinstance(error, av.error.ExitError):
            return SourceError(f"{self.name} is not a video that FFmpeg can open (it answers, but sends none)")
        if self._transport and isinstance(error, OSError) and scheme(str(self.path)).startswith("rtsp"):
            why = f"over {self._transport}: {reason(error)}; without 'transport' both ways are tried"
            return SourceError(f"{self.name} is not a video that FFmpeg can open ({why})")
        return SourceError(f"{self.name} is not a video that FFmpeg can open ({reason(error)})")

    def _jpegs(self) -> av.container.InputContainer | None:
        """The stream as JPEG files in a row, if there is one in it."""
        with suppress(av.FFmpegError, OSError):
            container = open_as_jpegs(str(self.path))
            if container.streams.video and container.streams.video[0].codec_context.width:
                return container
            container.close()
        return None

    # ---- frames
    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        try:
            yield from self._live(wanted) if self.live else super().read(wanted)
        except SourceError:
            if self.index or not self._other_way():
                raise
        else:
            return
        yield from self._live(wanted) if self.live else super().read(wanted)

    def _other_way(self) -> bool:
        """Opens a stream that gave nothing in another way, if there is one."""
        if self._container.format.name == "mpjpeg" and (container := self._jpegs()):
            self._container.close()
            self._container, self._stream = container, choose(container)
            return True
        if not self.live and self._whole is None and scheme(str(self.path)) in ("http", "https"):
            # perhaps its index is at the end, and the server gives no parts of files
            with suppress(av.FFmpegError, OSError):
                self._whole = download(str(self.path))
        return self._whole is not None

    def _live(self, wanted: Callable[[float], bool]) -> Iterator[Frame]:
        began = time.monotonic()
        clock, pace = FilmClock(self.fps, LONGEST_JUMPY_STEP_S), self._pace()
        self.index = 0
        try:
            for decoded in frames(self._container, self._stream, self._skip, self._fruitless):
                film_s = clock.seconds(decoded.time)
                if pace is not None and (wait := pace.wait_s(film_s, time.monotonic())) > 0:
                    self._pause(wait)
                yield from self._frame(decoded, time.monotonic() - began, wanted)
        except av.error.ExitError as error:
            raise SourceError(f"{self.name} fell silent after {self.index} frames") from error
        except (av.FFmpegError, OSError) as error:
            raise SourceError(f"{self.name} broke off after {self.index} frames ({reason(error)})") from error

    def _pace(self) -> Pace | None:
        kind = self._container.format
        if Flags(kind.flags) & Flags.no_timestamps or scheme(str(self.path)) not in BURSTING_SCHEMES:
            return None
        return Pace(steady=kind.name in SEGMENTED)

    def _fruitless(self, packets: int, seconds: float) -> None:
        if packets >= BAD_PACKETS and seconds >= BAD_S:
            raise SourceError(f"{self.name} sent {packets} packets in a row without a frame{self._first_fault()}")

    def close(self) -> None:
        super().close()
        if self._whole is not None:
            self._whole.close()
