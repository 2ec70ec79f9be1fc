"""What one camera makes of its answers over time: detections flow in frame by frame, track ids and events flow out."""

from __future__ import annotations

from typing import Any

from clients.detections import Detections
from clients.fleet.config import CameraConfig
from clients.fleet.tracks import Tracker
from clients.fleet.zones import Watch

USUAL_FPS = 10.0
"""Taken for a camera whose configuration says no rate: it only scales how long a lost thing is looked for."""


class Follower:
    """The tracker and the zones of a camera. Raises ImportError where supervision is missing."""

    def __init__(self, config: CameraConfig) -> None:
        self._tracker = Tracker(config.fps or USUAL_FPS, config.threshold)
        self._watch = Watch(config.zones)

    def __call__(self, found: Detections, time_s: float) -> tuple[tuple[int, ...], tuple[dict[str, Any], ...]]:
        """The track of each detection (-1: none yet) and the events of the frame, `time_s` seconds from the camera's
        start."""
        tracks = self._tracker.update(found)
        return tuple(tracks.tolist()), tuple(self._watch.update(found, tracks, time_s))
