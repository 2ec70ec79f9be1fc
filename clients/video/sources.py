"""The one place that decides what a source is: an address of a live camera, a video file, a folder or an image."""

from __future__ import annotations

from pathlib import Path

from clients.video.frames import IMAGE_SUFFIXES, Source, SourceError, Stills, Video
from clients.video.streams import Stream


def is_address(source: str | Path) -> bool:
    """Whether `source` is an address (`rtsp://...`, `webcam:0`) and not a path of this machine."""
    return "://" in str(source) or str(source).startswith("webcam:")


def open_source(source: str | Path) -> Source:
    """Opens a path or an address. Raises SourceError.

    Pillow reads folders and images, PyAV everything else. Addresses are FFmpeg's (`rtsp://`, `http://`, `udp://`,
    `tcp://` and so on) and `webcam:0`. Opening a live one takes up to `clients.video.streams.OPEN_TIMEOUT_S`.

        with open_source("street.mp4") as source:
            for frame in source:
                print(frame.index, frame.time_s, frame.rgb.shape)
    """
    if is_address(source):
        return Stream(str(source))
    path = Path(source)
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise SourceError(f"the folder {str(path)!r} has no images ({', '.join(IMAGE_SUFFIXES)})")
        return Stills(images)
    if not path.is_file():
        raise SourceError(f"there is no file {str(path)!r}")
    return Stills([path]) if path.suffix.lower() in IMAGE_SUFFIXES else Video(path)
