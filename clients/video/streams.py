"""Live video: network cameras and webcams.

Lost and broken packets are skipped, silence ends in an error, and the frame size may change. Reconnecting is the task
of `clients/video/reader.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from glob import glob

import av

from clients.video.frames import EVERY, Frame, SourceError, Video, upright, without_password

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp", "webcam")
"""Schemes that are always live; http(s) is live where the stream has no length."""
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 8.0, 5.0
"""A live source that sends nothing for this long has failed."""
BAD_PACKETS = 100
"""A live stream may lose packets; this many undecodable ones in a row are no video."""


class Stream(Video):
    """A network stream or a webcam (`webcam:0` is /dev/video0, or the first camera of macOS).

    Live unless it is a file on a web server. A live stream cannot start over; its times count from the first frame.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        scheme = address.split(":", 1)[0].lower()
        self.live = scheme in LIVE_SCHEMES or not self._container.duration
        if self.live:
            self.count = None
            self._stream.thread_type = "SLICE"  # frame threading would hold back one frame per thread

    def _open(self) -> av.container.InputContainer:
        address, options = str(self.path), {}
        if address.startswith("webcam:"):
            number = address.removeprefix("webcam:")
            device, kind = (number, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{number}", "v4l2")
            if kind == "v4l2" and not os.path.exists(device):
                raise ValueError(
                    f"there is no webcam {device}; this machine has {', '.join(sorted(glob('/dev/video*'))) or 'none'}"
                )
            return av.open(device, format=kind, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))
        if address.startswith("rtsp"):
            # over UDP a lost packet smears the image, and firewalls block it
            options = {"rtsp_transport": "tcp"}
        return av.open(address, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        if not self.live:
            yield from super().read(wanted)
            return
        index = bad = 0
        first: float | None = None
        name = without_password(self.path)
        try:
            for packet in self._container.demux(self._stream):
                try:
                    decoded_frames = packet.decode()
                except av.error.InvalidDataError as error:
                    bad += 1
                    if bad >= BAD_PACKETS:
                        raise SourceError(
                            f"{name!r} sent {bad} undecodable packets in a row ({without_password(str(error))})"
                        ) from error
                    continue
                for decoded in decoded_frames:
                    bad = 0
                    time_s = decoded.time if decoded.time is not None else index / self.fps
                    first = time_s if first is None else first
                    if wanted(time_s - first):
                        yield Frame(index, time_s - first, upright(decoded))
                    index += 1
        except (av.FFmpegError, OSError) as error:
            raise SourceError(f"{name!r} broke off after {index} frames ({without_password(str(error))})") from error
