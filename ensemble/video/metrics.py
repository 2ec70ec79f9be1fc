"""What a video front model tells Prometheus beside its detector's figures: sessions, slots, objects without room."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from ensemble.metrics import PipelineMetrics
from ensemble.pipeline import Pipeline
from ensemble.video.pipeline import VideoPipeline
from ensemble.video.sessions import OUTCOMES


class VideoMetrics:
    """Gauges and counters of one video front model, in the engine model."""

    def __init__(self, model: str, video: VideoPipeline) -> None:
        kinds, label = pb_utils.MetricFamily, {"model": model}
        self._plain, self._video = PipelineMetrics(model), video
        live = kinds(name="sam3_sessions", description="Video sessions that are under way", kind=kinds.GAUGE)
        slots = kinds(name="sam3_track_slots", description="Slots for objects of videos", kind=kinds.GAUGE)
        over = kinds(
            name="sam3_sessions_total",
            description="Video sessions that are over or were refused, by what became of them",
            kind=kinds.COUNTER,
        )
        dropped = kinds(
            name="sam3_objects_dropped_total",
            description="New objects in videos that had no room in their session",
            kind=kinds.COUNTER,
        )
        self._families = (live, slots, over, dropped)  # a family that is collected takes its metrics with it
        self._live = live.Metric(labels=label)
        self._slots = {state: slots.Metric(labels={**label, "state": state}) for state in ("used", "total")}
        self._over = {outcome: over.Metric(labels={**label, "outcome": outcome}) for outcome in OUTCOMES}
        self._dropped = dropped.Metric(labels=label)
        self._told = dict.fromkeys((*OUTCOMES, "dropped"), 0)
        self._slots["total"].set(video.sessions.slots)

    def update(self, pipeline: Pipeline) -> None:
        """Tells what has changed since the last time."""
        self._plain.update(pipeline)
        sessions = self._video.sessions
        self._live.set(len(sessions))
        self._slots["used"].set(sessions.used_slots)
        for outcome, metric in self._over.items():
            self._grow(metric, outcome, sessions.over[outcome])
        self._grow(self._dropped, "dropped", self._video.dropped)

    def _grow(self, metric: Any, name: str, total: int) -> None:
        if total > self._told[name]:
            metric.increment(total - self._told[name])
            self._told[name] = total
