"""One frame's question: a picture, a camera's classes and its exemplars flow in, the `Detections` of one pass or of two
flow out.

An exemplar is a box of the frame that it is sent with: the server takes what lies inside it, in that very frame, as the
example. A camera's exemplars therefore stand for a place, not for a thing that was once there. They suit a camera that
does not move, and things that stay or come back to where the box is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from clients.detections import Detections
from clients.fleet.config import CameraConfig
from clients.fleet.pool import Endpoint
from clients.fleet.zoom import look_closer
from clients.video.reader import CapturedFrame


@dataclass(frozen=True, slots=True)
class Exemplar:
    """What a class looks like, or with `like` false does not: `box` is xyxy in 0..1 of the frame, `name` one of the
    camera's classes."""

    name: str
    box: tuple[float, float, float, float]
    like: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What became of one frame that was sent: `outcome` is `answered`, `late`, or the kind of error; `found` is None
    where nothing came, `latency_ms` is from capture to answer. `tracks` [D] and `events` are what
    `clients/fleet/follow.py` makes of it.
    """

    picture: CapturedFrame
    outcome: str
    latency_ms: float
    found: Detections | None = None
    error: str = ""
    tracks: tuple[int, ...] = ()
    events: tuple[dict[str, Any], ...] = ()

    @classmethod
    def to(cls, picture: CapturedFrame, outcome: str, found: Detections | None = None, error: str = "") -> Answer:
        """The answer that is there now."""
        return cls(picture, outcome, (time.monotonic() - picture.captured) * 1e3, found, error)


async def detect(
    place: Endpoint, config: CameraConfig, exemplars: Sequence[Exemplar], picture: CapturedFrame
) -> Detections:
    """One pass over the frame, or two. The second looks at crops, in which the exemplars do not lie: it goes by the
    names alone.

    Raises what `clients.connection.AsyncClient.detect` raises.
    """
    zoom = config.zoom
    shown: dict[str, Any] = {}
    if exemplars:
        shown = {
            "boxes": [e.box for e in exemplars],
            "box_labels": [int(e.like) for e in exemplars],
            "box_classes": [config.classes.index(e.name) for e in exemplars],
        }
    least = config.threshold if zoom is None else min(config.threshold, zoom.suspect)
    first = await place.client(config.model).detect(
        picture.jpeg, config.classes, threshold=least, mask_format=config.masks, **shown
    )
    if zoom is None:
        return first
    second = partial(
        place.client(zoom.model).detect, classes=config.classes, threshold=config.threshold, mask_format=config.masks
    )
    return await look_closer(picture.rgb, first, zoom, second)
