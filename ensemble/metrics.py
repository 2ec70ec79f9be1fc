"""What the models tell Prometheus beside Triton's own metrics: time per stage, frames per execution, the age of the
oldest frame, text-cache hits, calls of sub-models.

Every instance adds to the same series; Triton joins families of one name.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from ensemble.pipeline import Pipeline
from ensemble.spec import STAGES

STAGE_BUCKETS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
OUTCOMES = ("ok", "rejected", "failed", "refused")
AGE_S = 1.0
"""How often the age of the oldest frame is told while nothing else is."""


class FrontMetrics:
    """Counters and histograms of one front model's frames, and the age of the oldest one in this instance of it."""

    def __init__(self, model: str, instance: str, max_batch: int, stages: Sequence[str] = STAGES) -> None:
        kinds = pb_utils.MetricFamily
        seconds = _family("sam3_stage_seconds", "Seconds a frame spent in a stage of its way", kinds.HISTOGRAM)
        self._stages = {s: seconds.Metric(labels={"model": model, "stage": s}, buckets=STAGE_BUCKETS) for s in stages}
        batch = _family("sam3_batch_frames", "Frames that shared one execution of the front model", kinds.HISTOGRAM)
        self._batch = batch.Metric(labels={"model": model}, buckets=[float(n) for n in range(1, max_batch + 1)])
        frames = _family(
            "sam3_frames_total",
            "Frames by outcome: ok, rejected (the request was wrong), failed (the server was), refused (it is ending)",
            kinds.COUNTER,
        )
        self._frames = {o: frames.Metric(labels={"model": model, "outcome": o}) for o in OUTCOMES}
        found = _family("sam3_detections_total", "Detections returned", kinds.COUNTER)
        self._detections = found.Metric(labels={"model": model})
        oldest = _family(
            "sam3_oldest_frame_seconds",
            "Age of the oldest frame that an instance has taken from Triton's queue and not answered",
            kinds.GAUGE,
        )
        # Of several instances each has its own: what one sets, another would overwrite.
        self._oldest = oldest.Metric(labels={"model": model, "model_instance": instance})
        self._families = (seconds, batch, frames, found, oldest)  # one that is collected takes its metrics with it
        self._under_way: Counter[float] = Counter()

        # Each figure is a message to the server and back: a thread tells them after the answer is on its way.
        self._told: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._tell, name="metrics", daemon=True).start()

    @classmethod
    def of(cls, args: Mapping[str, str], max_batch: int, stages: Sequence[str] = STAGES) -> FrontMetrics:
        """`args` are those of Triton's `initialize`."""
        return cls(args["model_name"], args["model_instance_name"], max_batch, stages)

    def taken(self, start: float, frames: int) -> None:
        """So many frames left Triton's queue at `start` (`time.perf_counter`); `frame` is told of each when it is
        answered."""
        self._told.put(partial(self._under_way.update, {start: frames}))

    def batch(self, frames: int) -> None:
        self._told.put(partial(self._batch.observe, float(frames)))

    def frame(
        self, outcome: str, start: float, detections: int = 0, stage_ms: Mapping[str, float] | None = None
    ) -> None:
        self._told.put(partial(self._count, outcome, start, detections, dict(stage_ms or {})))

    def oldest_s(self, now: float) -> float:
        """Seconds since the oldest of the frames that are not answered was taken; 0 where there is none."""
        return now - min(self._under_way, default=now)

    def _count(self, outcome: str, start: float, detections: int, stage_ms: Mapping[str, float]) -> None:
        self._under_way[start] -= 1
        if self._under_way[start] <= 0:
            del self._under_way[start]
        self._frames[outcome].increment(1)
        if detections:
            self._detections.increment(detections)
        for stage, milliseconds in stage_ms.items():
            self._stages[stage].observe(milliseconds / 1e3)

    def _tell(self) -> None:
        due = told = 0.0
        while True:
            with suppress(Empty):
                self._told.get(timeout=AGE_S)()
            now = time.perf_counter()
            if now >= due:
                due, before, told = now + AGE_S, told, self.oldest_s(now)
                if told or before:
                    self._oldest.set(told)


class PipelineMetrics:
    """Counters of one front model's pipeline, wherever it runs."""

    def __init__(self, model: str) -> None:
        cache = _family(
            "sam3_text_cache_total",
            "Class names looked up in the text-feature cache, by result",
            pb_utils.MetricFamily.COUNTER,
        )
        self._cache = {r: cache.Metric(labels={"model": model, "result": r}) for r in ("hit", "miss")}
        self._call_family = _family("sam3_sub_model_calls_total", "Calls of a sub-model", pb_utils.MetricFamily.COUNTER)
        self._calls: dict[str, Any] = {}
        self._families, self._model = (cache, self._call_family), model
        self._seen: dict[str, int] = {}

    def update(self, pipeline: Pipeline) -> None:
        """Adds what the pipeline's running totals grew by since the last time."""
        self._grow(self._cache["hit"], "hit", pipeline.hits)
        self._grow(self._cache["miss"], "miss", pipeline.misses)
        for part, count in pipeline.calls.items():
            if part not in self._calls:
                self._calls[part] = self._call_family.Metric(labels={"model": self._model, "part": part})
            self._grow(self._calls[part], part, count)

    def _grow(self, metric: Any, key: str, total: int) -> None:
        if total > self._seen.get(key, 0):
            metric.increment(total - self._seen.get(key, 0))
            self._seen[key] = total


def _family(name: str, description: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=kind)
