"""What the page knows of a fleet: answers flow in as they come, figures and annotated JPEGs flow out when somebody looks."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clients.draw import annotate
from clients.encode import to_jpeg
from clients.fleet import Answer, Camera

RATE_S = 5.0
"""The window over which a camera's frame rate is taken."""
DEAD_S = 5.0
"""A camera that nothing was heard of for so long counts as silent."""
MOST_CLASSES, LONGEST_NAME = 100, 200


@dataclass(slots=True, eq=False)
class View:
    """The latest answer of one camera, its drawing once somebody asked for it, and when answers came."""

    answer: Answer | None = None
    jpeg: bytes = b""
    drawn: int = -1
    times: deque[float] = field(default_factory=lambda: deque(maxlen=512))


class Board:
    """A handler for `run_fleet`; draws only the frames that a browser asks for."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        self.cameras = {camera.config.name: camera for camera in cameras}
        self.views = {name: View() for name in self.cameras}

    def __call__(self, camera: Camera, answer: Answer) -> None:
        if answer.outcome == "answered":
            view = self.views[camera.config.name]
            view.answer = answer
            view.times.append(time.monotonic())

    async def picture(self, name: str) -> bytes | None:
        """The latest answered frame of a camera, annotated, as JPEG; None before the first. Raises KeyError for no such camera."""
        view = self.views[name]
        answer = view.answer
        if answer is None or (found := answer.found) is None:
            return None
        if view.drawn != answer.picture.index:
            view.jpeg = await asyncio.to_thread(lambda: to_jpeg(annotate(answer.picture.rgb, found), 80))
            view.drawn = answer.picture.index
        return view.jpeg

    def figures(self) -> list[dict[str, Any]]:
        """Each camera as plain data, `state` one of `live`, `connecting`, `silent`, `lost`, `failed`, `ended`."""
        now = time.monotonic()
        return [self._figures(camera, self.views[name], now) for name, camera in self.cameras.items()]

    def set_classes(self, name: str, classes: Sequence[str]) -> None:
        """From its next frame on the camera looks for these. Raises KeyError for no such camera, ValueError for unusable names."""
        camera = self.cameras[name]
        names = [word.strip() for word in classes if isinstance(word, str)]
        if not 1 <= len(names) <= MOST_CLASSES or len(names) < len(classes):
            raise ValueError(f"expected 1 to {MOST_CLASSES} class names, got {len(classes)} entries")
        if any(not 0 < len(word) <= LONGEST_NAME for word in names) or len(set(names)) < len(names):
            raise ValueError(f"expected names that differ, of 1 to {LONGEST_NAME} letters")
        config = camera.config
        known = dict(zip(config.classes, config.thresholds, strict=True))
        thresholds = tuple(known.get(word, config.threshold) for word in names)
        camera.config = replace(config, classes=tuple(names), thresholds=thresholds)

    def _figures(self, camera: Camera, view: View, now: float) -> dict[str, Any]:
        tally, reader, answer = camera.tally, camera.reader, view.answer
        recent = sum(now - t <= RATE_S for t in view.times)
        silent = reader.state == "live" and (not view.times or now - view.times[-1] > DEAD_S)
        found = answer.found if answer else None
        return {
            "name": camera.config.name,
            "classes": list(camera.config.classes),
            "state": "silent" if silent else reader.state,
            "error": tally.error or reader.error,
            "frame": answer.picture.index if answer else -1,
            "fps": round(recent / RATE_S, 1),
            "latency_ms": round(answer.latency_ms) if answer else None,
            "answered": tally.answered,
            "dropped": tally.dropped.total() + reader.replaced,
            "failed": tally.failed.total(),
            "stage_ms": {stage: round(ms, 1) for stage, ms in found.stage_ms.items()} if found is not None else {},
            "detections": _detections(answer),
        }


def _detections(answer: Answer | None) -> list[dict[str, Any]]:
    """Label and score of each, and its track where it has one."""
    if answer is None or (found := answer.found) is None:
        return []
    tracks = answer.tracks or (-1,) * len(found)
    return [
        {"label": label, "score": round(float(score), 2)} | ({"track": track} if track >= 0 else {})
        for label, score, track in zip(found.labels, found.scores, tracks, strict=True)
    ]
