"""Cameras and pods, frame by frame: an event simulation of seconds to minutes.

A camera makes a frame at every interval. It has at most `under_way` frames at the pods; of those that come meanwhile it
keeps the newest and drops the older, as a fleet's cameras do (`clients/fleet/camera.py`). A frame goes to the pod with
fewer frames of two that are drawn, as Envoy's least-request balancing does. A pod that is free takes what waits, up to
its largest batch, and waits for nothing else, as the engine model does (`ensemble/engine.py`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from perf.scale.pod import Pod

Interval = Callable[[Random], float]
"""Draws the seconds until a camera's next frame."""
MAKE, ARRIVE, DONE = range(3)


def steady(fps: float, jitter: float = 0.1) -> Interval:
    """Frames at a steady rate, each interval longer or shorter by up to `jitter` of it."""
    return lambda random: (1 + jitter * (2 * random.random() - 1)) / fps


def poisson(fps: float) -> Interval:
    return lambda random: random.expovariate(fps)


@dataclass(slots=True)
class Account:
    """What became of the frames: `made = answered + dropped + left`. `left` are those that wait or are under way at the
    end, `dropped_timed` those that were dropped after the warm-up. Seconds: `ages` from a frame's making to its answer,
    `waits` and `works` of answered frames at their pod, `oldest` the longest time at the pod of each batch, `busy` of
    all pods' GPUs, `gaps` the longest time of each camera between two answers."""

    made: int = 0
    answered: int = 0
    dropped: int = 0
    left: int = 0
    dropped_timed: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    ages: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    works: list[float] = field(default_factory=list)
    oldest: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Frame:
    camera: int
    made: float
    came: float = 0.0  # to the pod


def simulate(
    pod: Pod,
    pods: int,
    begins: Sequence[float],
    seconds: float,
    interval: Interval,
    *,
    under_way: int = 2,
    warm_up: float = 0.0,
    seed: int = 0,
) -> Account:
    """Cameras that send all the time from the second that `begins` has for each, at so many pods, for `seconds`. Frames
    are counted all the time, times only after `warm_up` seconds."""
    return _Run(pod, pods, begins, interval, under_way, warm_up, Random(seed)).until(seconds)


class _Run:
    def __init__(
        self,
        pod: Pod,
        pods: int,
        begins: Sequence[float],
        interval: Interval,
        under_way: int,
        warm_up: float,
        random: Random,
    ) -> None:
        cameras = len(begins)
        self.pod, self.interval, self.most, self.random = pod, interval, under_way, random
        self.queues: list[deque[_Frame]] = [deque() for _ in range(pods)]
        self.batches: list[list[_Frame]] = [[] for _ in range(pods)]
        self.at_pod = [0] * pods
        self.under_way = [0] * cameras
        self.newest: list[_Frame | None] = [None] * cameras
        self.heard = [max(warm_up, begin) for begin in begins]
        self.events: list[tuple[float, int, int, int, _Frame | None]] = []
        self.account, self.from_s, self.number = Account(gaps=[0.0] * cameras), warm_up, 0
        for camera, begin in enumerate(begins):
            self._at(begin + random.random() * interval(random), MAKE, camera)

    def until(self, seconds: float) -> Account:
        while self.events[0][0] < seconds:
            now, _, kind, index, frame = heapq.heappop(self.events)
            if kind == MAKE:
                self._make(now, index)
            elif kind == ARRIVE:
                assert frame is not None
                self._arrive(now, index, frame)
            else:
                self._done(now, index)
        account = self.account
        account.left = sum(self.under_way) + sum(frame is not None for frame in self.newest)
        account.seconds = seconds - self.from_s
        account.gaps = [max(gap, seconds - heard) for gap, heard in zip(account.gaps, self.heard, strict=True)]
        return account

    def _at(self, when: float, kind: int, index: int, frame: _Frame | None = None) -> None:
        self.number += 1  # first come, first served among events of one moment
        heapq.heappush(self.events, (when, self.number, kind, index, frame))

    def _make(self, now: float, camera: int) -> None:
        self.account.made += 1
        if self.newest[camera] is not None:
            self.account.dropped += 1
            self.account.dropped_timed += now >= self.from_s
        self.newest[camera] = _Frame(camera, now)
        self._send(now, camera)
        self._at(now + self.interval(self.random), MAKE, camera)

    def _send(self, now: float, camera: int) -> None:
        frame = self.newest[camera]
        if frame is None or self.under_way[camera] == self.most:
            return
        self.newest[camera] = None
        self.under_way[camera] += 1
        one, other = (self.random.randrange(len(self.queues)) for _ in range(2))
        pod = one if self.at_pod[one] <= self.at_pod[other] else other
        self.at_pod[pod] += 1
        self._at(now + self.pod.outside_s, ARRIVE, pod, frame)

    def _arrive(self, now: float, pod: int, frame: _Frame) -> None:
        frame.came = now
        self.queues[pod].append(frame)
        if not self.batches[pod]:
            self._begin(now, pod)

    def _begin(self, now: float, pod: int) -> None:
        queue = self.queues[pod]
        batch = [queue.popleft() for _ in range(min(len(queue), self.pod.largest))]
        self.batches[pod] = batch
        if not batch:
            return
        took = self.pod.batch_s(len(batch))
        self._at(now + took, DONE, pod)
        if now >= self.from_s:
            account = self.account
            account.busy += took
            account.waits += [now - frame.came for frame in batch]
            account.works += [took] * len(batch)
            account.oldest.append(now + took - batch[0].came)

    def _done(self, now: float, pod: int) -> None:
        batch = self.batches[pod]
        self._begin(now, pod)
        self.at_pod[pod] -= len(batch)
        for frame in batch:
            camera, account = frame.camera, self.account
            account.answered += 1
            self.under_way[camera] -= 1
            if now >= self.from_s:
                account.ages.append(now - frame.made)
                account.gaps[camera] = max(account.gaps[camera], now - self.heard[camera])
                self.heard[camera] = now
            self._send(now, camera)
