"""The state behind the page: the latest answer of each camera, its figures, and annotated JPEGs on request."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clients.conversation import Tracks
from clients.dashboard.edit import checked_classes, checked_exemplars, checked_regions
from clients.dashboard.shares import Share
from clients.detections import Detections
from clients.draw import annotate, colour_map
from clients.fleet.camera import Camera
from clients.fleet.request import Answer, Exemplar
from clients.video.encode import to_jpeg

RATE_S = 5.0
"""The window over which a camera's frame rate is measured."""
SMALL = 480
"""Pixels: a small picture is the frame over the least whole number that makes it no wider."""
SILENT_S = 5.0
"""A camera without an answer for this long counts as silent."""


@dataclass(slots=True, eq=False)
class View:
    """One camera's latest answer, the latency of the latest one that was computed for its own frame, the drawings (made
    on request: frame number and JPEG, of the whole size and the small one), the times of recent answers, the latest
    frame's error, and what the camera gets of what it wishes for."""

    share: Share
    answer: Answer | None = None
    latency_ms: float | None = None
    drawn: dict[bool, tuple[int, bytes]] = field(default_factory=dict)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    error: str = ""


class NoSuchCamera(LookupError):  # noqa: N818 - the name says what happened
    """An unknown camera; the message lists the known ones."""


class Board:
    """The views of all cameras; called with each answer, as a handler of `run_fleet` is. Draws only the frames that a
    browser requests. `clock` is in seconds."""

    def __init__(self, cameras: Sequence[Camera], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.cameras = {camera.config.name: camera for camera in cameras}
        self.views = {name: View(Share(camera)) for name, camera in self.cameras.items()}

    def __call__(self, camera: Camera, answer: Answer) -> None:
        view = self.views[camera.config.name]
        view.error = answer.error
        if answer.usable:
            view.answer = answer
            view.latency_ms = view.latency_ms if answer.unchanged else answer.latency_ms
            view.times.append(self._clock())

    def camera(self, name: str) -> Camera:
        """Raises NoSuchCamera."""
        if name not in self.cameras:
            raise NoSuchCamera(f"there is no camera {name!r}; there are {', '.join(self.cameras)}")
        return self.cameras[name]

    async def picture(self, name: str, small: bool = False) -> bytes | None:
        """The latest answered frame of a camera, annotated, as JPEG, for a tile in a `small` size; None before the
        first. Raises NoSuchCamera."""
        view = self.views[self.camera(name).config.name]
        answer = view.answer
        if answer is None or (found := answer.found) is None:
            return None
        number = answer.frame.index
        if view.drawn.get(small, (-1, b""))[0] != number:
            view.drawn[small] = number, await asyncio.to_thread(_picture, answer.frame.rgb, found, answer.tracks, small)
        return view.drawn[small][1]

    def figures(self) -> list[dict[str, Any]]:
        """Each camera as plain data, `state` one of `live`, `connecting`, `silent`, `lost`, `failed`, `ended`."""
        now = self._clock()
        return [self._figures(camera, self.views[name], now) for name, camera in self.cameras.items()]

    def set_classes(self, name: str, names: Sequence[str]) -> None:
        """Changes a camera's classes from its next frame on. A class that it had before keeps its threshold and its
        exemplars. Raises NoSuchCamera, or Refused for unusable names.
        """
        camera = self.camera(name)
        classes, config = checked_classes(names), camera.config
        known = dict(zip(config.classes, config.thresholds, strict=True))
        thresholds = tuple(known.get(word, config.threshold) for word in classes)
        camera.config = replace(config, classes=classes, thresholds=thresholds)
        camera.exemplars = tuple(e for e in camera.exemplars if e.name in classes)

    def set_exemplars(self, name: str, exemplars: Sequence[Exemplar]) -> None:
        """Changes a camera's exemplars from its next frame on: what lies in these boxes, in each frame anew. An empty
        list clears them. Raises NoSuchCamera, or Refused for unusable boxes.
        """
        camera = self.camera(name)
        camera.exemplars = checked_exemplars(camera.config, exemplars)

    def set_regions(self, name: str, regions: Sequence[Sequence[tuple[float, float]]]) -> None:
        """Changes in which polygons of (x, y), in 0..1 of the frame, nothing counts as movement. Raises NoSuchCamera,
        or Refused for regions that the camera cannot have.
        """
        camera = self.camera(name)
        motion = checked_regions(camera.config, regions)
        camera.config = replace(camera.config, motion=motion)
        if camera.gate is not None:
            camera.gate.motion = motion

    def _figures(self, camera: Camera, view: View, now: float) -> dict[str, Any]:
        stats, reader, answer = camera.stats, camera.reader, view.answer
        recent = sum(now - t <= RATE_S for t in view.times)
        silent = reader.state == "live" and (not view.times or now - view.times[-1] > SILENT_S)
        found = answer.found if answer else None
        colours = colour_map(camera.config.classes)
        return {
            "name": camera.config.name,
            "classes": [
                {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)} for name, colour in colours.items()
            ],
            "exemplars": [asdict(exemplar) for exemplar in camera.exemplars],
            "state": "silent" if silent else reader.state,
            "error": view.error or reader.error,
            "frame": answer.frame.index if answer else -1,
            "fps": round(recent / RATE_S, 1),
            "latency_ms": None if view.latency_ms is None else round(view.latency_ms),
            "answered": stats.answered,
            "still": stats.still,
            "motion": _motion(camera),
            "share": view.share.look(now),
            "dropped": camera.dropped.total(),
            "failed": stats.failed.total(),
            "stage_ms": {stage: round(ms, 1) for stage, ms in found.stage_ms.items()} if found is not None else {},
            "detections": _detections(answer),
            "hidden": found.hidden_ids.tolist() if isinstance(found, Tracks) else [],
        }


def _picture(rgb: NDArray[np.uint8], found: Detections, tracks: Sequence[int], small: bool) -> bytes:
    factor = -(-rgb.shape[1] // SMALL)
    if small and factor > 1:
        rgb = np.asarray(Image.fromarray(rgb).reduce(factor))
    return to_jpeg(annotate(rgb, found, tracks=tracks, scale=2.0 if small else 1.0), 80)


def _motion(camera: Camera) -> dict[str, Any] | None:
    """Whether something moved in the latest frame, the share of frames that were not sent, 0 to 1, and the masked
    regions; None for a camera without a motion gate."""
    if camera.gate is None:
        return None
    stats = camera.stats
    seen = stats.answered + stats.still
    saved = round(stats.still / seen, 3) if seen else 0.0
    regions = camera.gate.motion.regions
    return {"moving": camera.gate.moving, "saved": saved, "advice": stats.advice, "regions": regions}


def _detections(answer: Answer | None) -> list[dict[str, Any]]:
    """Label, score and box (xyxy in 0..1) of each detection, and its track if it has one."""
    if answer is None or (found := answer.found) is None:
        return []
    tracks = answer.tracks or (-1,) * len(found)
    return [
        {"label": label, "score": round(float(score), 2), "box": [round(side, 4) for side in box]}
        | ({"track": track} if track >= 0 else {})
        for label, score, box, track in zip(found.labels, found.scores, found.boxes.tolist(), tracks, strict=True)
    ]
