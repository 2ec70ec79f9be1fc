"""The rule by which Kubernetes' HorizontalPodAutoscaler turns metrics into a number of pods, as KEDA configures it.

From pkg/controller/podautoscaler of Kubernetes: every 15 s each metric proposes `ceil(ready pods * value / target)`, or
no change where value / target is within 0.1 of one; the largest proposal counts. Stabilisation windows then take the
least of the recent proposals for growing and the largest for shrinking, and policies bound the change in a period. Pods
that are starting are not ready, so they do not make a proposal larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

TOLERANCE = 0.1
SYNC_S = 15


@dataclass(frozen=True, slots=True)
class Policy:
    """At most `value` pods, or per cent of the pods, in `period_s` seconds."""

    kind: str  # Pods or Percent
    value: int
    period_s: int


@dataclass(frozen=True, slots=True)
class Rules:
    """One direction. `window_s` is the stabilisation window. Of several policies the one that allows the largest change
    counts, which is Kubernetes' default."""

    window_s: int
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Behavior:
    """Both directions, and the least and the most pods."""

    least: int
    most: int
    up: Rules
    down: Rules


@dataclass(slots=True)
class Autoscaler:
    """`replicas` is how many pods are wanted now."""

    behavior: Behavior
    replicas: int
    proposals: list[tuple[float, int]] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)

    def sync(self, now: float, ready: int, usages: Sequence[float]) -> int:
        """The number of pods from `now` (seconds) on; `usages` are the metrics' values over their targets. Without any
        nothing changes."""
        if not usages:
            return self.replicas
        proposal = max(self._proposal(ready, usage) for usage in usages)
        up, down = self.behavior.up, self.behavior.down
        self.proposals.append((now, proposal))
        self.proposals = [(t, n) for t, n in self.proposals if now - t <= max(up.window_s, down.window_s)]
        least = min(n for t, n in self.proposals if now - t < up.window_s or t == now)
        largest = max(n for t, n in self.proposals if now - t < down.window_s or t == now)
        wanted = min(max(self.replicas, least), largest)
        if wanted > self.replicas:
            wanted = min(wanted, max(self.replicas, self._limit(now, up, growing=True)))
        elif wanted < self.replicas:
            wanted = max(wanted, min(self.replicas, self._limit(now, down, growing=False)))
        wanted = min(max(wanted, self.behavior.least), self.behavior.most)
        if wanted != self.replicas:
            self.changes.append((now, wanted - self.replicas))
            self.replicas = wanted
        return wanted

    def _proposal(self, ready: int, usage: float) -> int:
        """Within the least and the most pods."""
        proposal = self.replicas if abs(1 - usage) <= TOLERANCE else math.ceil(usage * ready - 1e-9)
        return min(max(proposal, self.behavior.least), self.behavior.most)

    def _limit(self, now: float, rules: Rules, *, growing: bool) -> int:
        """How far the policies let the number of pods go."""
        limits = []
        for policy in rules.policies:
            start = self.replicas - sum(change for t, change in self.changes if now - t < policy.period_s)
            sign = 1 if growing else -1
            if policy.kind == "Pods":
                limits.append(start + sign * policy.value)
            else:
                share = start * (1 + sign * policy.value / 100)
                limits.append(math.ceil(share - 1e-9) if growing else math.floor(share + 1e-9))
        return max(limits) if growing else min(limits)
