"""Live video: an address flows in, frames flow out until the camera or the network ends them.

What a network does to a stream is dealt with here as far as the stream itself survives it: lost and broken packets are
passed over, silence ends in an error, a change of size is just another size. Starting again is
`clients/video/reader.py`'s part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from glob import glob

import av

from clients.video.frames import EVERY, Frame, SourceError, Video, public, upright

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp", "webcam")
"""Addresses that are live whatever they say about themselves; http(s) is live where the stream has no length."""
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 8.0, 5.0
"""A live source that is silent for so long is given up."""
BAD_PACKETS = 100
"""A live stream may lose packets; so many undecodable ones in a row are garbage."""


class Stream(Video):
    """What arrives over a network, or from a webcam (`webcam:0` is /dev/video0, or the first camera of macOS).

    Live unless it is a file that a web server hands out. A live stream cannot start over, its times count from the
    first frame, and packets that cannot be decoded are passed over up to `BAD_PACKETS` in a row.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        scheme = address.split(":", 1)[0].lower()
        self.live = scheme in LIVE_SCHEMES or not self._container.duration
        if self.live:
            self.count = None
            self._stream.thread_type = "SLICE"  # threads by frame would hold back as many frames as there are threads

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
            # over UDP a lost packet smears the picture, and firewalls drop it altogether
            options = {"rtsp_transport": "tcp"}
        return av.open(address, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        if not self.live:
            yield from super().read(wanted)
            return
        index = bad = 0
        first: float | None = None
        try:
            for packet in self._container.demux(self._stream):
                try:
                    pictures = packet.decode()
                except av.error.InvalidDataError as error:
                    bad += 1
                    if bad >= BAD_PACKETS:
                        raise SourceError(
                            f"{public(self.path)!r} sent {bad} undecodable packets in a row ({public(str(error))})"
                        ) from error
                    continue
                for picture in pictures:
                    bad = 0
                    time_s = picture.time if picture.time is not None else index / self.fps
                    first = time_s if first is None else first
                    if wanted(time_s - first):
                        yield Frame(index, time_s - first, upright(picture))
                    index += 1
        except (av.FFmpegError, OSError) as error:
            raise SourceError(f"{public(self.path)!r} broke off after {index} frames ({public(str(error))})") from error
