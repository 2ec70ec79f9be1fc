"""The request for one frame, with a camera's classes and exemplars, and its answer.

An exemplar is a box of the frame that it is sent with: the server takes what lies inside it, in that very frame, as the
example. A camera's exemplars therefore stand for a place in the image, not for an object that was once there. They suit
a camera that does not move, and objects that stay in that place or return to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from clients.detections import Detections
from clients.fleet.config import CameraConfig
from clients.fleet.endpoint import Endpoint
from clients.fleet.zoom import look_closer
from clients.video.reader import CapturedFrame


@dataclass(frozen=True, slots=True)
class Exemplar:
    """An example of a class, or with `like` false a counter-example: `box` is xyxy in 0..1 of the frame, `name` one of
    the camera's classes."""

    name: str
    box: tuple[float, float, float, float]
    like: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The result for one frame. `outcome` is `answered`, `late`, or the kind of error; `still` for a frame that was not
    sent since nothing moved, with what was found in the latest one that was, number `answered_frame`; `no_answer` for
    one whose latest one was not answered either. `found` is None if there was no response; `latency_ms` is from capture
    to answer. `tracks` [D] and `events` are filled in by the camera.
    """

    frame: CapturedFrame
    outcome: str
    latency_ms: float
    found: Detections | None = None
    error: str = ""
    tracks: tuple[int, ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    answered_frame: int = -1

    @property
    def unchanged(self) -> bool:
        """Whether it is the answer to an earlier frame, which stands."""
        return self.outcome == "still"

    @property
    def usable(self) -> bool:
        """Whether what was found holds for this frame."""
        return self.outcome in ("answered", "still")

    @classmethod
    def now(cls, frame: CapturedFrame, outcome: str, found: Detections | None = None, error: str = "") -> Answer:
        """An answer that arrives at this moment, on the clock of the running event loop."""
        return cls(frame, outcome, (asyncio.get_running_loop().time() - frame.captured) * 1e3, found, error)


async def detect(
    endpoint: Endpoint, config: CameraConfig, exemplars: Sequence[Exemplar], frame: CapturedFrame
) -> Detections:
    """One pass over the frame, or two with zoom. The second pass sees crops, which the exemplars' boxes do not fit, so
    it uses the class names alone.

    Raises what `clients.connection.AsyncClient.detect` raises.
    """
    zoom = config.zoom
    boxes: dict[str, Any] = {}
    if exemplars:
        boxes = {
            "boxes": [e.box for e in exemplars],
            "box_labels": [int(e.like) for e in exemplars],
            "box_classes": [config.classes.index(e.name) for e in exemplars],
        }
    lowest = config.threshold if zoom is None else min(config.threshold, zoom.suspect)
    first = await endpoint.client(config.model).detect(
        frame.image, config.classes, threshold=lowest, mask_format=config.masks, **boxes
    )
    if zoom is None:
        return first
    second = partial(
        endpoint.client(zoom.model).detect, classes=config.classes, threshold=config.threshold, mask_format=config.masks
    )
    return await look_closer(frame.rgb, first, zoom, second)
