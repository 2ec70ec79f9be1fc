"""A day of pods and cameras under an autoscaler, second by second."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perf.scale.autoscaler import SYNC_S, Autoscaler
from perf.scale.pod import Pod
from perf.scale.response import Response, percentile
from perf.scale.settings import OLDEST, USE, WAIT, Settings, Trigger

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What happens to pods. Seconds: `start_s` from the wish for a pod to its readiness (a node's GPU, the container,
    its plans, a real inference); `lag_s` the age of the newest figures that the autoscaler sees (pods are scraped and
    rules evaluated every 15 s); `notice_s` until the balancer sends a dead pod's frames elsewhere (at worst two of the
    questions of `deploy/envoy.yaml` whether it is there); `replace_s` until Kubernetes makes a new pod for one on a
    lost node (40 s to notice, 300 s that pods tolerate it), of which the pod counts as ready for `ready_s`. `losses`
    are the hours at which a node is lost."""

    start_s: int = 180
    lag_s: int = 30
    notice_s: int = 4
    replace_s: int = 340
    ready_s: int = 40
    losses: tuple[float, ...] = (12.5, 20.55)


@dataclass(slots=True)
class Day:
    """Of each second: frames that were `made`, `answered`, `dropped` (a newer one of the camera took its place) and
    `failed` (lost with a node); `ready` pods that serve, `pods` that are paid for, `loads` of a pod, `gaps` are the
    seconds between two answers of a camera at the worst, those of a lost pod left out."""

    made: Array
    answered: Array
    dropped: Array
    failed: Array
    ready: NDArray[np.int64]
    pods: NDArray[np.int64]
    loads: Array
    gaps: Array
    response: Response

    def age(self, share: float, seconds: slice = slice(None)) -> float:
        """The age in seconds at its answer that `share` of the answered frames do not exceed."""
        return percentile(self.response.ages_at(self.loads[seconds], self.answered[seconds]), share)


@dataclass(slots=True)
class _Pods:
    """When each pod is ready, and until when pods on lost nodes count."""

    ready_at: list[float]
    dead_until: list[tuple[float, float]] = field(default_factory=list)  # counts as ready, takes a replica

    def scale(self, now: float, replicas: int, start_s: float) -> None:
        self.dead_until = [dead for dead in self.dead_until if dead[1] > now]
        missing = replicas - len(self.ready_at) - len(self.dead_until)
        if missing > 0:
            self.ready_at += [now + start_s] * missing
        elif missing < 0:  # the youngest go first: those that are starting, then those that serve
            self.ready_at = sorted(self.ready_at)[: max(0, len(self.ready_at) + missing)]

    def serving(self, now: float) -> int:
        return sum(ready <= now for ready in self.ready_at)

    def lose(self, now: float, cluster: Cluster) -> None:
        """A node with one of the pods that serve is gone."""
        self.ready_at.remove(min(self.ready_at))
        self.dead_until.append((now + cluster.ready_s, now + cluster.replace_s))


def simulate(pod: Pod, response: Response, made: Array, settings: Settings, cluster: Cluster) -> Day:
    """The day of `made` frames a second. It begins with as many pods as its first seconds need."""
    seconds = len(made)
    first = min(max(settings.behavior.least, int(np.ceil(made[0] / pod.fps / 0.7))), settings.behavior.most)
    scaler, pods = Autoscaler(settings.behavior, first), _Pods([0.0] * first)
    ready, paid = np.zeros(seconds, int), np.zeros(seconds, int)
    lost, loads = np.zeros(seconds), np.zeros(seconds)
    figures = {name: np.zeros(seconds) for name in ("answered", "wait_s", "work_s", "busy", "oldest_s", "gap_s")}
    losses = [round(hour * 3600 / SYNC_S) * SYNC_S for hour in cluster.losses]
    for now in range(0, seconds, SYNC_S):
        if now:
            seen = [(_value(t, now - cluster.lag_s, figures, made, pod), t.target) for t in settings.triggers]
            usages = [value / target for value, target in seen if value is not None]
            counted = pods.serving(now) + sum(until > now for until, _ in pods.dead_until)
            scaler.sync(now, counted, usages)
        pods.scale(now, scaler.replicas, cluster.start_s)
        block = slice(now, min(now + SYNC_S, seconds))
        if now in losses and (before := pods.serving(now)):
            pods.lose(now, cluster)
            lost[now : now + cluster.notice_s] += 1 / before
        ready[block] = np.searchsorted(sorted(pods.ready_at), np.arange(block.start, block.stop), side="right")
        paid[block] = len(pods.ready_at)
        there = made[block] * (1 - lost[block])
        loads[block] = there / (pod.fps * np.maximum(ready[block], 1e-3))
        for name, values in figures.items():
            values[block] = response.at(name, loads[block])
        figures["answered"][block] = np.where(ready[block] > 0, figures["answered"][block], 0)
    answered = made * (1 - lost) * figures["answered"]
    gaps = np.maximum(figures["gap_s"], _silence(ready))
    return Day(made, answered, made * (1 - lost) - answered, made * lost, ready, paid, loads, gaps, response)


def _value(trigger: Trigger, until: int, figures: dict[str, Array], made: Array, pod: Pod) -> float | None:
    """A metric as Prometheus has it from the seconds before `until`; None where nothing was answered."""
    window = slice(max(0, until - trigger.window_s), max(1, until))
    if trigger.metric == WAIT:
        frames = made[window] * figures["answered"][window]
        work = float(np.sum(frames * figures["work_s"][window]))
        return float(np.sum(frames * figures["wait_s"][window])) / work if work else None
    if trigger.metric == OLDEST:
        oldest_s = float(np.max(figures["oldest_s"][window]))
        return oldest_s if trigger.limit is None else min(oldest_s, trigger.limit)
    assert trigger.metric == USE, trigger.metric
    return float(np.mean(figures["busy"][window])) * pod.shown_use


def _silence(ready: NDArray[np.int64]) -> Array:
    """Seconds for which nothing has served, at each second."""
    silent, found = 0, np.zeros(len(ready))
    for second in np.flatnonzero(ready == 0):
        silent = silent + 1 if second and ready[second - 1] == 0 else 1
        found[second] = silent
    return found
