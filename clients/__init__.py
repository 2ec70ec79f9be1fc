"""Clients: frames of a camera go out to the front model of a running server, typed `Detections` come back.

Over gRPC or HTTP, blocking (`Client`) or asyncio (`AsyncClient`); `sam3-camera` is the same on the command line. Of the
other rooms only the specification is imported, so this package installs on a camera's small computer without torch or
Triton.

    with Client("localhost", model="sam3_r672") as client:
        found = client.detect("photo.jpg", ["red circle", "blue square"], mask_format="bits")
    print(found.labels, found.boxes_in_pixels, found.scores, found.masks_at(*found.frame_size).shape)
"""

from clients.connection import AsyncClient, Client
from clients.detections import Detections
from clients.errors import InvalidRequest, ModelNotFound, RequestTimeout, Sam3ServerError, ServerUnavailable
from clients.video.frames import Frame
from clients.video.sources import open_source

__all__ = [
    "AsyncClient",
    "Client",
    "Detections",
    "Frame",
    "InvalidRequest",
    "ModelNotFound",
    "RequestTimeout",
    "Sam3ServerError",
    "ServerUnavailable",
    "open_source",
]
