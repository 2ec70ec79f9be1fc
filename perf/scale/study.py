"""The same days under several settings, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perf.scale import demand
from perf.scale.day import Cluster, Day, simulate
from perf.scale.demand import Demand
from perf.scale.pod import Pod
from perf.scale.response import percentile, respond
from perf.scale.settings import Settings

LOSSES = 2
"""Nodes that are lost on each day, at some time between these hours."""
FROM, UNTIL = 7.0, 21.0


@dataclass(frozen=True)
class Study:
    """Days that are drawn from `seeds`, one each, with nodes that are lost."""

    pod: Pod
    demand: Demand
    cluster: Cluster
    seeds: tuple[int, ...]

    @cached_property
    def cameras(self) -> NDArray[np.int64]:
        """Connected at each second."""
        return demand.connected(self.demand)

    @cached_property
    def made(self) -> list[NDArray[np.float64]]:
        """Frames a second of each day."""
        return [demand.frames_per_second(self.demand, self.cameras, seed) for seed in self.seeds]

    @property
    def peak_pods(self) -> int:
        """Pods that the busiest second needs with full batches."""
        return int(np.ceil(max(made.max() for made in self.made) / self.pod.fps))

    def days(self, settings: Settings) -> list[Day]:
        response, found = respond(self.pod, self.demand.fps), []
        for seed, made in zip(self.seeds, self.made, strict=True):
            losses = tuple(np.random.default_rng(seed).uniform(FROM, UNTIL, LOSSES))
            found.append(simulate(self.pod, response, made, settings, replace(self.cluster, losses=losses)))
        return found


def figures(days: Sequence[Day]) -> dict[str, float]:
    """Of all days together: pods that are paid for, ages of answered frames, frames that were not answered, and the
    longest silence of a camera that was not at a lost pod."""
    ages = np.sum([day.response.ages_at(day.loads, day.answered) for day in days], axis=0)
    made = sum(float(day.made.sum()) for day in days)
    return {
        "pods_mean": round(float(np.mean([day.pods.mean() for day in days])), 1),
        "pods_most": max(int(day.pods.max()) for day in days),
        "gpu_hours": round(sum(float(day.pods.sum()) for day in days) / 3600 / len(days)),
        "p95_ms": round(1e3 * percentile(ages, 0.95)),
        "p99_ms": round(1e3 * percentile(ages, 0.99)),
        "dropped_percent": round(100 * sum(float(day.dropped.sum()) for day in days) / made, 2),
        "failed_percent": round(100 * sum(float(day.failed.sum()) for day in days) / made, 3),
        "silence_s": round(max(float(day.gaps.max()) for day in days), 1),
    }
