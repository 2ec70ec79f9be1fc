"""The client library: sends frames to a SAM3 server, blocking or with asyncio, over gRPC or HTTP.

    >>> from clients import Client, open_source
    >>> with Client("localhost", model="sam3_r672") as client, open_source("street.mp4") as source:
    ...     for frame in source:
    ...         found = client.detect(frame.rgb, ["person", "red car"], mask_format="bits")
    ...         print(frame.index, found.labels, found.scores, found.boxes_in_pixels)

`sam3-camera` does the same on the command line, for one camera or a fleet. The package needs neither torch nor Triton:
of the other rooms it imports only the specification, so it installs on a camera's small computer.
"""

from clients.connection import AsyncClient, Client
from clients.conversation import Tracks
from clients.detections import Detections
from clients.errors import (
    AccessDenied,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    Sam3ServerError,
    ServerUnavailable,
    WrongVersion,
)
from clients.video.frames import Frame, SourceError
from clients.video.sources import open_source

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "Client",
    "Detections",
    "Frame",
    "InvalidRequest",
    "ModelNotFound",
    "RequestTimeout",
    "Sam3ServerError",
    "ServerUnavailable",
    "SourceError",
    "Tracks",
    "WrongVersion",
    "open_source",
]
