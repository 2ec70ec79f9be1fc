"""What the front model tells Prometheus beside Triton's own metrics: time per stage, frames per execution, text-cache
hits, calls of sub-models.

Every instance of a front model adds to the same series; Triton joins families of one name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from ensemble.spec import STAGES

STAGE_BUCKETS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
OUTCOMES = ("ok", "rejected", "failed")


class Metrics:
    """Counters and histograms of one front model."""

    def __init__(self, model: str, max_batch: int) -> None:
        kinds = pb_utils.MetricFamily
        seconds = _family("sam3_stage_seconds", "Seconds a frame spent in a stage of the front model", kinds.HISTOGRAM)
        self._stages = {s: seconds.Metric(labels={"model": model, "stage": s}, buckets=STAGE_BUCKETS) for s in STAGES}
        batch = _family("sam3_batch_frames", "Frames that shared one execution of the front model", kinds.HISTOGRAM)
        self._batch = batch.Metric(labels={"model": model}, buckets=[float(n) for n in range(1, max_batch + 1)])
        frames = _family(
            "sam3_frames_total",
            "Frames by outcome: ok, rejected (the request was wrong), failed (the server was)",
            kinds.COUNTER,
        )
        self._frames = {o: frames.Metric(labels={"model": model, "outcome": o}) for o in OUTCOMES}
        found = _family("sam3_detections_total", "Detections returned", kinds.COUNTER)
        self._detections = found.Metric(labels={"model": model})
        cache = _family(
            "sam3_text_cache_total", "Class names looked up in the text-feature cache, by result", kinds.COUNTER
        )
        self._cache = {r: cache.Metric(labels={"model": model, "result": r}) for r in ("hit", "miss")}
        calls = _family("sam3_sub_model_calls_total", "Calls from the front model to a sub-model", kinds.COUNTER)
        self._calls: dict[str, Any] = {}
        self._call_family, self._model = calls, model
        self._families = (
            seconds,
            batch,
            frames,
            found,
            cache,
            calls,
        )  # a family that is collected takes its metrics with it
        self._seen: dict[str, int] = {}

    def batch(self, frames: int) -> None:
        self._batch.observe(float(frames))

    def frame(self, outcome: str, detections: int = 0, stage_ms: Mapping[str, float] | None = None) -> None:
        self._frames[outcome].increment(1)
        if detections:
            self._detections.increment(detections)
        for stage, milliseconds in (stage_ms or {}).items():
            self._stages[stage].observe(milliseconds / 1e3)

    def totals(self, hits: int, misses: int, calls: Mapping[str, int]) -> None:
        """Running totals of the pipeline; what they grew by since the last time is added."""
        self._grow(self._cache["hit"], "hit", hits)
        self._grow(self._cache["miss"], "miss", misses)
        for part, count in calls.items():
            if part not in self._calls:
                self._calls[part] = self._call_family.Metric(labels={"model": self._model, "part": part})
            self._grow(self._calls[part], part, count)

    def _grow(self, metric: Any, key: str, total: int) -> None:
        if total > self._seen.get(key, 0):
            metric.increment(total - self._seen.get(key, 0))
            self._seen[key] = total


def _family(name: str, description: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=kind)
