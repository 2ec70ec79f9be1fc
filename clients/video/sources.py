"""The one place that decides what a source is: an address of a live camera, a video file, a folder or an image."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from clients.video.address import scheme
from clients.video.film import Video
from clients.video.frames import IMAGE_SUFFIXES, Source, SourceError, Stills
from clients.video.snapshots import Snapshots
from clients.video.streams import Stream


def is_address(source: str | Path) -> bool:
    """Whether `source` is an address (`rtsp://...`, `webcam:0`) and not a path of this machine."""
    return "://" in str(source) or str(source).startswith("webcam:")


def is_remote(source: str | Path) -> bool:
    """Whether what cannot be opened now may be there later: addresses, but for those of files (`file://...`)."""
    return is_address(source) and scheme(str(source)) != "file"


def open_source(
    source: str | Path,
    *,
    transport: str | None = None,
    fps: float | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> Source:
    """Opens a path or an address. Raises SourceError.

    Pillow reads folders and images, PyAV everything else. Addresses are FFmpeg's (`rtsp://`, `http://`, `udp://`,
    `tcp://` and so on) and `webcam:0`. Opening a live one takes up to `clients.video.address.OPEN_TIMEOUT_S`.

    `transport` is what RTSP is asked for, `tcp` or `udp` (None: TCP, else UDP); `fps` how often an address that gives
    one picture is asked; `pause` waits so many seconds, and returns true where the source should end.

        with open_source("street.mp4") as source:
            for frame in source:
                print(frame.index, frame.time_s, frame.rgb.shape)
    """
    if is_remote(source):
        stream = Stream(str(source), transport, pause)
        if not stream.is_snapshot:
            return stream
        stream.close()
        return Snapshots(str(source), fps, pause)
    path = Path(url2pathname(urlsplit(str(source)).path) if is_address(source) else source)
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise SourceError(f"the folder {str(path)!r} has no images ({', '.join(IMAGE_SUFFIXES)})")
        return Stills(images)
    if not path.is_file():
        raise SourceError(f"there is no file {str(path)!r}")
    return Stills([path]) if path.suffix.lower() in IMAGE_SUFFIXES else Video(path)
