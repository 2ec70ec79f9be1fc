"""What became of every frame: outcomes flow in one by one, a summary flows out in which nothing is missing.

For each camera read = answered + dropped + failed holds at the end, with the reasons of the last two. Latencies are
kept for the latest frames only, so that a run of weeks takes no more memory than one of minutes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LATEST = 2048
"""Latencies kept of each camera."""


@dataclass(slots=True)
class CameraStats:
    """One camera's account. `dropped` and `failed` count by reason; `latencies_ms` are from capture to answer."""

    name: str
    read: int = 0
    answered: int = 0
    detections: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    error: str = ""

    def record(self, seconds: float) -> dict[str, Any]:
        """Plain data; rates over `seconds`."""
        p50, p95 = np.percentile(self.latencies_ms, [50, 95]).tolist() if self.latencies_ms else (0.0, 0.0)
        return {
            "name": self.name,
            "read": self.read,
            "answered": self.answered,
            "dropped": dict(self.dropped),
            "failed": dict(self.failed),
            "detections": self.detections,
            "fps": round(self.answered / seconds, 2) if seconds else 0.0,
            "p50_ms": round(p50, 1),
            "p95_ms": round(p95, 1),
        } | ({"error": self.error} if self.error else {})


def summary(tallies: Sequence[CameraStats], seconds: float) -> dict[str, Any]:
    """All cameras together. `fairness` is the answers of the least served camera over those of the most served one, 1
    at best."""
    latencies = [ms for t in tallies for ms in t.latencies_ms]
    answered = [t.answered for t in tallies]
    dropped, failed = sum((t.dropped for t in tallies), Counter()), sum((t.failed for t in tallies), Counter())
    return {
        "cameras": len(tallies),
        "seconds": round(seconds, 2),
        "read": sum(t.read for t in tallies),
        "answered": sum(answered),
        "dropped": dropped.total(),
        "failed": failed.total(),
        "dropped_by": dict(dropped),
        "failed_by": dict(failed),
        "detections": sum(t.detections for t in tallies),
        "fairness": round(min(answered) / max(answered), 3) if any(answered) else 0.0,
        "fps": round(sum(answered) / seconds, 2) if seconds else 0.0,
        "p50_ms": round(float(np.percentile(latencies, 50)), 1) if latencies else 0.0,
        "p95_ms": round(float(np.percentile(latencies, 95)), 1) if latencies else 0.0,
    }
