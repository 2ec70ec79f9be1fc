"""Addresses: how FFmpeg opens each kind of them, and what an answer of the other side means."""

from __future__ import annotations

import os
import sys
import tempfile
from glob import glob
from typing import IO, Any
from urllib.parse import urlsplit

import av

from clients.redact import without_password
from ensemble.loopback import is_loopback

OPEN_TIMEOUT_S, READ_TIMEOUT_S, SEGMENT_TIMEOUT_S = 8.0, 5.0, 30.0
"""A live source that sends nothing for this long has failed; the last where a playlist offers a segment now and
then."""
SEGMENTED = ("hls", "dash")
"""FFmpeg's formats of playlists."""
NO_PROXY = "none"
"""FFmpeg takes `http_proxy` from the environment unless it is told another, and passes no empty one on to segments."""
TRANSPORTS = ("tcp", "udp")
"""What RTSP cameras may be asked for."""


def scheme(address: str) -> str:
    """`rtsp` of `rtsp://...`, in lower case."""
    return address.split(":", 1)[0].lower()


def open_address(address: str, transport: str | None = None) -> av.container.InputContainer:
    """The container at that address. Raises av.FFmpegError, OSError, or ValueError for a webcam that is not there."""
    if scheme(address) == "webcam":
        return _open_webcam(address.split(":", 1)[1])
    options = _options(address, transport)
    if not any(f".{kind}" in address.lower() for kind in ("m3u8", "mpd")):
        container = open_container(address, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))
        if container.format.name not in SEGMENTED:
            return container
        container.close()
    # The last segment but one: the newest may be the last for longer than it plays, and the third last may be gone
    # from the list before it is asked for.
    options |= {"live_start_index": "-2"}
    return open_container(address, options=options, timeout=(OPEN_TIMEOUT_S, SEGMENT_TIMEOUT_S))


def open_as_jpegs(address: str) -> av.container.InputContainer:
    """The same stream read as JPEG files one after the other, whatever stands between them: cameras that put the wrong
    type, length or boundary before each part, or none."""
    return open_container(
        address, format="mjpeg", options=_options(address, None), timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S)
    )


def download(address: str) -> IO[bytes]:
    """The bytes at the address in a file that vanishes when it is closed. Raises av.FFmpegError or OSError."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
    with open_container(address, format="data", options=_options(address, None), timeout=timeout) as container:
        for packet in container.demux():
            file.write(bytes(packet))
    return file


def open_container(source: str | IO[bytes], **how: Any) -> av.container.InputContainer:
    """`av.open`, whose errors do not quote a password (they end up in tracebacks), and which opens films with a title
    in an unknown encoding too."""
    try:
        return av.open(source, "r", metadata_errors="replace", **how)
    except av.FFmpegError as error:
        error.args = tuple(without_password(word) if isinstance(word, str) else word for word in error.args)
        raise


def _options(address: str, transport: str | None) -> dict[str, str]:
    kind = scheme(address)
    if kind in ("rtsp", "rtsps"):
        # Over UDP a lost packet smears the image, and firewalls block it: only where the camera takes nothing else.
        return {"rtsp_transport": transport} if transport else {"rtsp_flags": "prefer_tcp"}
    if kind in ("http", "https") and is_loopback(urlsplit(address).netloc.rpartition("@")[2]):
        return {"http_proxy": NO_PROXY}
    return {}


def _open_webcam(number: str) -> av.container.InputContainer:
    device, kind = (number, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{number}", "v4l2")
    if kind == "v4l2" and not os.path.exists(device):
        raise ValueError(
            f"there is no webcam {device}; this machine has {', '.join(sorted(glob('/dev/video*'))) or 'none'}"
        )
    return open_container(device, format=kind, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))


def refusal(error: BaseException) -> str:
    """Why the other side gives nothing, if it says so for good; else empty."""
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return "it asks for a user name and a password, or for others than these (401)"
    if isinstance(error, av.error.HTTPForbiddenError):
        return "it does not allow this (403)"
    if isinstance(error, av.error.HTTPNotFoundError):
        return "there is nothing at this path (404)"
    return ""
