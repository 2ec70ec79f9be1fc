"""The source behind a path or an address: a string in, a `Source` of `clients/video/frames.py` or a live one of
`clients/video/streams.py` out."""

from __future__ import annotations

from pathlib import Path

from clients.video.frames import IMAGE_SUFFIXES, Source, SourceError, Stills, Video
from clients.video.streams import Stream


def open_source(path: str | Path) -> Source:
    """The source behind a path or an address: folders and images by Pillow, anything else by PyAV. Raises SourceError.

    Addresses are FFmpeg's (`rtsp://`, `http://`, `udp://`, `tcp://` and so on) and `webcam:0`. Opening a live one takes
    up to `clients.video.streams.OPEN_TIMEOUT_S`.
    """
    address = str(path)
    if "://" in address or address.startswith("webcam:"):
        return Stream(address)
    path = Path(path)
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise SourceError(f"the folder {str(path)!r} has no images ({', '.join(IMAGE_SUFFIXES)})")
        return Stills(images)
    if not path.is_file():
        raise SourceError(f"there is no file {str(path)!r}")
    return Stills([path]) if path.suffix.lower() in IMAGE_SUFFIXES else Video(path)
