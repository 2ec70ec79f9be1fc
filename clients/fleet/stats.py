"""Statistics of a fleet: how many frames each camera read, and what happened to every one of them.

For each camera read = answered + still + dropped + failed holds at the end, with the reasons of the last two. Latencies
are kept for the latest frames only, so that a run of weeks takes no more memory than one of minutes.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clients.conversation import Tracks
from clients.fleet.request import Answer
from clients.redact import without_password
from clients.video.skipped import Skipped

logger = logging.getLogger(__name__)

LATEST = 2048
"""Latencies kept of each camera."""
BUSY, BUSY_SHARE = 600, 0.02
"""After so many answers a camera is told of whose frames fewer than this share were still."""


def percentiles(milliseconds: Collection[float]) -> tuple[float, float]:
    """The 50th and the 95th percentile; zeros for no values."""
    p50, p95 = np.percentile(list(milliseconds), [50, 95]).tolist() if milliseconds else (0.0, 0.0)
    return p50, p95


@dataclass(slots=True)
class CameraStats:
    """One camera's counts. `still` frames were not sent, since nothing moved; `dropped` and `failed` count by reason: a
    newer frame replaced one while the camera waited for its turn (`no_turn`), for any server to be there
    (`no_server`), or for answers of its own that are under way (`replaced`); it was answered too late (`late`), or
    the answer that it shares is missing (`no_answer`); the fleet was `stopped`. `latencies_ms` are from capture to
    answer. With `track: masks`, `restarts` is how often the session began anew, `dropped_objects` what found no
    room in it. `advice` is what would serve the camera better.
    """

    name: str
    read: int = 0
    answered: int = 0
    still: int = 0
    detections: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    error: str = ""
    skipped: Skipped = field(default_factory=Skipped)
    unhandled: int = 0
    handler_error: str = ""
    restarts: int = 0
    dropped_objects: int = 0
    advice: str = ""

    def count(self, answer: Answer, gated: bool) -> None:
        """Counts what became of a frame of a camera, which may have a motion gate."""
        if answer.outcome == "answered":
            self.answered += 1
            self.detections += len(answer.found or ())
            self.latencies_ms.append(answer.latency_ms)
            if gated and self.answered == BUSY and self.still < BUSY_SHARE * BUSY:
                self.advise(
                    f"the motion gate leaves out {self.still} of {BUSY + self.still} frames, since something moves in"
                    " nearly all; mask what always moves with `regions`, lower `sensitivity`, or leave `motion` out"
                )
            if isinstance(answer.found, Tracks):
                self.restarts = answer.found.restarts
                self.dropped_objects += answer.found.dropped_objects
        elif answer.outcome == "still":
            self.still += 1
        elif answer.outcome in ("late", "no_answer"):
            self.dropped[answer.outcome] += 1
        else:
            self.failed[answer.outcome] += 1
            self.error = answer.error

    def advise(self, text: str) -> None:
        """Notes and logs what would serve this camera better."""
        self.advice = text
        logger.warning("%s: %s", self.name, text)

    def handler_failed(self, error: Exception) -> None:
        """Counts an answer whose handler, tracks or zones failed, and names the latest failure, with its line."""
        self.unhandled += 1
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        text = without_password(f"{type(error).__name__}: {error}{where}")
        if text != self.handler_error:
            logger.warning("%s: an answer was not handled: %s", self.name, text)
        self.handler_error = text

    def record(self, seconds: float) -> dict[str, Any]:
        """The counts as plain data, with the frame rate over `seconds`."""
        p50, p95 = percentiles(self.latencies_ms)
        return {
            "name": self.name,
            "read": self.read,
            "answered": self.answered,
            "still": self.still,
            "dropped": dict(self.dropped),
            "failed": dict(self.failed),
            "detections": self.detections,
            "fps": round(self.answered / seconds, 2) if seconds else 0.0,
            "p50_ms": round(p50, 1),
            "p95_ms": round(p95, 1),
        } | self._troubles()

    def _troubles(self) -> dict[str, Any]:
        """What went wrong, only where something did: `skipped` says what of the source could not be decoded and was
        therefore not read, `unhandled` how many answers a handler failed on."""
        troubles: dict[str, Any] = {"error": self.error} if self.error else {}
        if self.skipped.count:
            troubles |= {"skipped": self.skipped.count, "skipped_why": dict(self.skipped.why)}
        if self.unhandled:
            troubles |= {"unhandled": self.unhandled, "handler_error": self.handler_error}
        troubles |= {"advice": self.advice} if self.advice else {}
        counts = {"restarts": self.restarts, "dropped_objects": self.dropped_objects}
        return troubles | {name: count for name, count in counts.items() if count}


def summary(cameras: Sequence[CameraStats], seconds: float) -> dict[str, Any]:
    """All cameras together. `fairness` is the answers of the least served camera over those of the most served one,
    with still frames: 1 at best."""
    p50, p95 = percentiles([ms for camera in cameras for ms in camera.latencies_ms])
    answered = [camera.answered for camera in cameras]
    served = [camera.answered + camera.still for camera in cameras]
    dropped = sum((camera.dropped for camera in cameras), Counter())
    failed = sum((camera.failed for camera in cameras), Counter())
    return {
        "cameras": len(cameras),
        "seconds": round(seconds, 2),
        "read": sum(camera.read for camera in cameras),
        "answered": sum(answered),
        "still": sum(camera.still for camera in cameras),
        "dropped": dropped.total(),
        "failed": failed.total(),
        "skipped": sum(camera.skipped.count for camera in cameras),
        "unhandled": sum(camera.unhandled for camera in cameras),
        "dropped_by": dict(dropped),
        "failed_by": dict(failed),
        "detections": sum(camera.detections for camera in cameras),
        "fairness": round(min(served) / max(served), 3) if any(served) else 0.0,
        "fps": round(sum(answered) / seconds, 2) if seconds else 0.0,
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
    }
