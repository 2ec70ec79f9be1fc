"""A server that answers every frame with the same detections: tests of what comes after an answer need no other."""

from __future__ import annotations

from clients.detections import Detections
from clients.fleet.endpoint import Endpoint
from clients.fleet.pool import Pool


class Answering:
    """Stands in for `clients.connection.AsyncClient`."""

    model = "sam3_r252"

    def __init__(self, found: Detections) -> None:
        self.found = found

    async def detect(self, image, classes, **options):
        return self.found

    async def ready(self):
        return True

    async def close(self):
        pass


def answering(found: Detections) -> Pool:
    """A pool of one such server."""
    return Pool([Endpoint(lambda _: Answering(found), "here")], 4)
