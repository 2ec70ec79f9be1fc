"""Zones: events such as "person 7 has been in `gate` for 5 seconds", from a camera's tracked detections.

An object's position is the middle of its box's lower edge, where it touches the ground. Each stay makes one event; an
object that is not seen for longer than `GAP_S` has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.detections import Detections

GAP_S = 2.0


@dataclass(frozen=True, slots=True)
class Zone:
    """A polygon of (x, y) in 0..1 of the frame. Objects of `classes` (empty: all) that stay `seconds` make an event."""

    name: str
    polygon: tuple[tuple[float, float], ...]
    seconds: float = 0.0
    classes: tuple[str, ...] = ()

    def contains(self, points: NDArray[Any]) -> NDArray[np.bool_]:
        """bool [P] for points [P,2]: whether a ray to the right crosses the outline an odd number of times."""
        x, y = np.asarray(points, float).reshape(-1, 2).T
        inside = np.zeros(len(x), bool)
        for (x0, y0), (x1, y1) in zip(self.polygon, self.polygon[1:] + self.polygon[:1], strict=True):
            between = (y0 > y) != (y1 > y)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= between & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return inside


@dataclass(slots=True)
class _Stay:
    since: float
    seen: float
    reported: bool = False


class ZoneMonitor:
    """The stays in one camera's zones."""

    def __init__(self, zones: Sequence[Zone]) -> None:
        self.zones = tuple(zones)
        self._stays: dict[tuple[str, int], _Stay] = {}

    def update(self, found: Detections, tracks: NDArray[np.int64], time_s: float) -> list[dict[str, Any]]:
        """The events of one frame, `time_s` seconds after the camera's start: zone, class, track, and seconds in the
        zone. `tracks` [D] are the ids of `clients.fleet.tracks.Tracker`; detections without one (-1) make no event.
        """
        positions = np.stack([(found.boxes[:, 0] + found.boxes[:, 2]) / 2, found.boxes[:, 3]], axis=1)
        events = []
        for zone in self.zones:
            inside = zone.contains(positions)
            for i in np.flatnonzero(inside & (tracks >= 0)):
                label = found.labels[i]
                if zone.classes and label not in zone.classes:
                    continue
                stay = self._stays.setdefault((zone.name, int(tracks[i])), _Stay(time_s, time_s))
                if time_s - stay.seen > GAP_S:
                    stay.since, stay.reported = time_s, False
                stay.seen = time_s
                if not stay.reported and time_s - stay.since >= zone.seconds:
                    stay.reported = True
                    events.append(
                        {
                            "zone": zone.name,
                            "label": label,
                            "track": int(tracks[i]),
                            "seconds": round(time_s - stay.since, 2),
                        }
                    )
        self._stays = {key: stay for key, stay in self._stays.items() if time_s - stay.seen <= GAP_S}
        return events
