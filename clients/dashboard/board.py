"""What the page knows of a fleet: answers flow in as they come, figures and annotated JPEGs flow out when somebody
looks."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from clients.dashboard.edit import checked_classes, checked_exemplars
from clients.draw import annotate, colour_map
from clients.fleet.ask import Answer, Exemplar
from clients.fleet.fleet import Camera
from clients.video.encode import to_jpeg

RATE_S = 5.0
"""The window over which a camera's frame rate is taken."""
DEAD_S = 5.0
"""A camera that nothing was heard of for so long counts as silent."""


@dataclass(slots=True, eq=False)
class View:
    """The latest answer of one camera, its drawing once somebody asked for it, when answers came, and what is wrong
    since."""

    answer: Answer | None = None
    jpeg: bytes = b""
    drawn: int = -1
    times: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    error: str = ""


class NoSuchCamera(LookupError):  # noqa: N818 - the name says what happened
    """The message lists the cameras that there are."""


class Board:
    """A handler for `run_fleet`; draws only the frames that a browser asks for."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        self.cameras = {camera.config.name: camera for camera in cameras}
        self.views = {name: View() for name in self.cameras}

    def __call__(self, camera: Camera, answer: Answer) -> None:
        view = self.views[camera.config.name]
        view.error = answer.error
        if answer.outcome == "answered":
            view.answer = answer
            view.times.append(time.monotonic())

    def camera(self, name: str) -> Camera:
        """Raises NoSuchCamera."""
        if name not in self.cameras:
            raise NoSuchCamera(f"there is no camera {name!r}; there are {', '.join(self.cameras)}")
        return self.cameras[name]

    async def picture(self, name: str) -> bytes | None:
        """The latest answered frame of a camera, annotated, as JPEG; None before the first. Raises NoSuchCamera."""
        view = self.views[self.camera(name).config.name]
        answer = view.answer
        if answer is None or (found := answer.found) is None:
            return None
        if view.drawn != answer.picture.index:
            view.jpeg = await asyncio.to_thread(
                lambda: to_jpeg(annotate(answer.picture.rgb, found, tracks=answer.tracks), 80)
            )
            view.drawn = answer.picture.index
        return view.jpeg

    def figures(self) -> list[dict[str, Any]]:
        """Each camera as plain data, `state` one of `live`, `connecting`, `silent`, `lost`, `failed`, `ended`."""
        now = time.monotonic()
        return [self._figures(camera, self.views[name], now) for name, camera in self.cameras.items()]

    def set_classes(self, name: str, names: Sequence[str]) -> None:
        """From its next frame on the camera looks for these; a class that stays keeps its threshold and its exemplars.
        Raises NoSuchCamera, or Refused for unusable names.
        """
        camera = self.camera(name)
        classes, config = checked_classes(names), camera.config
        known = dict(zip(config.classes, config.thresholds, strict=True))
        thresholds = tuple(known.get(word, config.threshold) for word in classes)
        camera.config = replace(config, classes=classes, thresholds=thresholds)
        camera.exemplars = tuple(e for e in camera.exemplars if e.name in classes)

    def set_exemplars(self, name: str, exemplars: Sequence[Exemplar]) -> None:
        """From its next frame on what lies in these boxes, in each frame anew, are the camera's examples; none clears
        them. Raises NoSuchCamera, or Refused for unusable boxes.
        """
        camera = self.camera(name)
        camera.exemplars = checked_exemplars(camera.config, exemplars)

    def _figures(self, camera: Camera, view: View, now: float) -> dict[str, Any]:
        tally, reader, answer = camera.tally, camera.reader, view.answer
        recent = sum(now - t <= RATE_S for t in view.times)
        silent = reader.state == "live" and (not view.times or now - view.times[-1] > DEAD_S)
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
    """Label, score and box (xyxy in 0..1) of each, and its track where it has one."""
    if answer is None or (found := answer.found) is None:
        return []
    tracks = answer.tracks or (-1,) * len(found)
    return [
        {"label": label, "score": round(float(score), 2), "box": [round(side, 4) for side in box]}
        | ({"track": track} if track >= 0 else {})
        for label, score, box, track in zip(found.labels, found.scores, found.boxes.tolist(), tracks, strict=True)
    ]
