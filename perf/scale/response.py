"""What cameras get and what the metrics say at each load of a pod, from `serving.py`, as a table to look up.

A day is simulated second by second with this table instead of frame by frame. That is allowed because nothing piles up:
a camera never has more than its frames under way and one that waits, so pods and cameras are in a steady state within
about a second of a change, and the autoscaler looks four times a minute. `tests/perf/scale/test_day.py` compares both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from perf.scale.pod import Pod
from perf.scale.serving import simulate, steady

LOADS = (
    *(0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.84, 0.88, 0.91, 0.94, 0.97, 1.0),
    *(1.03, 1.06, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 14.0),
)
"""Frames made over frames that full batches could carry."""
PODS, SECONDS = 4, 15.0
AGES_S = np.geomspace(0.005, 60, 240)
"""Edges of the histogram of ages."""


@dataclass(frozen=True, slots=True)
class Response:
    """A row of each array for each of `loads`: `answered` share of the frames, `wait_s` and `work_s` mean seconds of an
    answered frame at the pod, `busy` share of the time that the GPU works, `oldest_s` how long the oldest frame of a
    batch has been at the pod, `gap_s` the longest time between two answers of a camera, `ages` [loads, bins] shares of
    the answered frames in the bins of `AGES_S`."""

    loads: NDArray[np.float64]
    answered: NDArray[np.float64]
    wait_s: NDArray[np.float64]
    work_s: NDArray[np.float64]
    busy: NDArray[np.float64]
    oldest_s: NDArray[np.float64]
    gap_s: NDArray[np.float64]
    ages: NDArray[np.float64]

    def at(self, name: str, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """One of the one-dimensional arrays, interpolated; beyond the ends its end."""
        return np.interp(loads, self.loads, getattr(self, name))

    def ages_at(self, loads: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The histogram of ages of seconds with these loads, each counted with its weight."""
        last = len(self.loads) - 1
        place = np.interp(loads, self.loads, np.arange(last + 1.0))
        lower = np.minimum(place.astype(int), last - 1)
        rows = np.zeros(last + 1)
        np.add.at(rows, lower, weights * (lower + 1 - place))
        np.add.at(rows, lower + 1, weights * (place - lower))
        return rows @ self.ages


def percentile(histogram: NDArray[np.float64], share: float) -> float:
    """Seconds below which `share` of a histogram over `AGES_S` lies; 0 where it is empty."""
    total = np.cumsum(histogram)
    if not total.size or total[-1] <= 0:
        return 0.0
    return float(np.interp(share * total[-1], np.concatenate([[0.0], total]), AGES_S))


@cache
def respond(pod: Pod, fps: float, under_way: int = 2, seconds: float = SECONDS) -> Response:
    """The table for cameras that make `fps` frames a second."""
    rows, ages = [], []
    for number, load in enumerate(LOADS):
        cameras = max(1, round(load * pod.fps / fps * PODS))
        a = simulate(
            pod, PODS, [0.0] * cameras, seconds, steady(fps), under_way=under_way, warm_up=seconds / 5, seed=number
        )
        rows.append(
            (
                cameras * fps / pod.fps / PODS,
                len(a.ages) / (len(a.ages) + a.dropped_timed),
                np.mean(a.waits),
                np.mean(a.works) + pod.outside_s,
                min(1.0, a.busy / a.seconds / PODS),
                np.mean(a.oldest),
                max(a.gaps),
            )
        )
        ages.append(np.histogram(np.clip(a.ages, AGES_S[0], AGES_S[-1]), AGES_S)[0] / len(a.ages))
    loads, answered, waits, works, busy, oldest, gaps = np.array(rows, float).T
    return Response(loads, answered, waits, works, busy, oldest, gaps, np.array(ages))
