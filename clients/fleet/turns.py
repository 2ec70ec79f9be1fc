"""Whose turn it is where cameras ask for more than the servers can answer: floors first, the rest by weight and motion.

A camera that waits has a claim. Where its latest turn is as long ago as its floor (`least_fps`) allows, it comes before
all others; of several such the one that is due longest. All other turns are shared in proportion to the weights, of
which a camera that has seen nothing move lately has only a part, by start-time fair queueing (Goyal, Vin and Cheng,
1996): each turn moves a camera's tag on by 1 / weight, the smallest tag is next, and who did not ask for a while has
saved up one turn at most. So each camera gets its floor or its share by weight, whichever is more; no turn is lost
while somebody waits, and nobody waits for ever. That none gets more than it wants is the readers' part: they offer no
more frames than `fps`.

Where the servers cannot keep even the floors, the floors' clock is held back: it runs as fast as they are kept, and
each camera gets the same share of its floor.

Nothing here waits or reads a clock: `now` is in seconds and never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

STILL_PART = 0.25
"""The part of its weight that counts of a camera in which nothing moved lately."""
RECENT_S = 5.0
"""What moved so many seconds ago or less moved lately."""
BEHIND_S = 2.0
"""The floors' clock is held back where a turn comes later than this: a server that answers in batches is late often."""
WINDOW_S = 10.0
"""Over which it is told whether the floors are kept."""
OUTAGE_S = 1.0
"""Too little capacity holds the floors' clock back again and again by a little. Once by more is a server that was away,
of which no more than this counts."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Whose multiples, but for their whole parts, spread evenly however many there are."""


@dataclass(slots=True, eq=False)
class Claim:
    """One camera's claim on turns: its floor in frames per second (0: none), its weight, and whether something moved
    before it lately. `due` is when its floor's next turn is due, on the floors' clock; `tag` that of its latest turn by
    weight, `since` the least that its next tag can be. `by_floor` and `by_weight` count its turns.
    """

    least_fps: float = 0.0
    weight: float = 1.0
    moving: Callable[[], bool] = field(default=lambda: True, repr=False)
    due: float = -math.inf
    tag: float = -math.inf
    since: float = 0.0
    by_floor: int = 0
    by_weight: int = 0

    @property
    def counts(self) -> float:
        """Its weight at this moment."""
        return self.weight * (1.0 if self.moving() else STILL_PART)


class Turns:
    """The order of all claims on the same servers. `kept` is the share of the floors that the servers could keep, 0 to
    1, in the latest `WINDOW_S`."""

    def __init__(self) -> None:
        self.kept = 1.0
        self._known = 0  # claims that were ever made
        self._tag = 0.0  # of the turn by weight that was given last
        self._due = -math.inf  # of the floor's turn that was given last
        self._held = 0.0  # seconds by which the floors' clock is behind
        self._began, self._lost = -math.inf, 0.0  # of the window: when, and by how much the clock was held back in it

    def ask(self, claim: Claim, now: float) -> None:
        """The claim's camera begins to wait."""
        step = 1 / claim.counts
        claim.since = self._tag - step  # at most one turn is saved up, while its next frame came
        if claim.tag == -math.inf:  # spread, else all of one weight would have their turns at once, and others none
            self._known += 1
            claim.tag = self._tag - step * (self._known * GOLDEN % 1)
        # what was not asked for in time is not made up for, except as far as all the others are behind too
        claim.due = now - self._held if claim.due == -math.inf else max(claim.due, self._due)

    def order(self, claim: Claim, now: float) -> tuple[int, float]:
        """What claims that wait are sorted by; the smallest is next, among equal ones the one that waits longest."""
        return (0, claim.due) if self._is_due(claim, now) else (1, self._next_tag(claim))

    def give(self, claim: Claim, now: float) -> None:
        """The claim gets a turn."""
        if self._is_due(claim, now):
            late = max(0.0, now - self._held - claim.due - BEHIND_S)
            self._held += late
            self._lost += min(late, OUTAGE_S)
            self._due = max(self._due, claim.due)
            claim.due += 1 / claim.least_fps
            claim.tag = min(self._next_tag(claim), self._tag)  # its next turn by weight counts from here
            claim.by_floor += 1
        else:
            claim.tag = self._next_tag(claim)
            self._tag = max(self._tag, claim.tag)
            self._due = now - self._held  # no floor is due
            claim.due = self._due + 1 / claim.least_fps if claim.least_fps else -math.inf
            claim.by_weight += 1
        self._look_back(now)

    def _is_due(self, claim: Claim, now: float) -> bool:
        return claim.least_fps > 0 and claim.due <= now - self._held

    def _next_tag(self, claim: Claim) -> float:
        return max(claim.since, claim.tag + 1 / claim.counts)

    def _look_back(self, now: float) -> None:
        if now - self._began >= WINDOW_S:
            self.kept = 1 - self._lost / (now - self._began)
            self._began, self._lost = now, 0.0
