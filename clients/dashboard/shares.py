"""How much of what a camera wishes for it gets, and why not all of it: rates over the latest seconds, in words too."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from clients.fleet.camera import Camera

WINDOW_S = 5.0
"""Over which rates are measured, once looks at the camera are that old."""
APART_S = 0.5
"""The least time between two looks that are kept: many browsers may ask."""
ENOUGH = 0.95
"""The part of its wish from which on a camera gets all of it: frames that are under way have no answer yet."""
REASONS = {
    "no_turn": "waits for its turn",
    "no_server": "no server is there",
    "replaced": "waits for its own answers, at most {in_flight} at a time",
    "late": "its answers come after the deadline",
    "no_answer": "the answer that its still frames share is missing",
    "failed": "its frames fail",
}


class Share:
    """One camera's share. `look` is called whenever the page wants to know, with `now` in seconds."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self._looks: deque[tuple[float, int, int, Counter[str]]] = deque()

    def look(self, now: float) -> dict[str, Any]:
        """`asked` and `got` in frames a second, None until there is something to compare with; the camera's `least_fps`
        and `weight`, whether it is `moving` (None: nobody knows), and `why` it gets less than it wishes for, or ''."""
        stats, claim = self.camera.stats, self.camera.claim
        gone = self.camera.dropped + Counter(failed=stats.failed.total())
        latest = (now, self.camera.reader.read, stats.answered + stats.still, gone)
        while len(self._looks) > 1 and now - self._looks[1][0] >= WINDOW_S:
            self._looks.popleft()
        if not self._looks or now - self._looks[-1][0] >= APART_S:
            self._looks.append(latest)
        share: dict[str, Any] = {
            "asked": None,
            "got": None,
            "least_fps": claim.least_fps,
            "weight": claim.weight,
            "moving": claim.moving() if self.camera.gate else None,
            "why": "",
        }
        then = self._looks[0]
        if now - then[0] < APART_S:
            return share
        asked, got = ((b - a) / (now - then[0]) for a, b in zip(then[1:3], latest[1:3], strict=True))
        why = self._why(got / asked, got, gone - then[3]) if got < ENOUGH * asked else ""
        return share | {"asked": round(asked, 1), "got": round(got, 1), "why": why}

    def _why(self, part: float, got: float, gone: Counter[str]) -> str:
        claim, reasons = self.camera.claim, [reason for reason, _ in gone.most_common() if reason in REASONS]
        if not reasons:  # those that it did not get are under way
            return ""
        what = f"{100 * part:.0f} % of its wish, weight {claim.weight:g}"
        if self.camera.gate:
            what += ", moving" if claim.moving() else ", still"
        if claim.least_fps:
            below = " is not kept" if got < ENOUGH * claim.least_fps else ""
            what += f", floor of {claim.least_fps:g} fps{below}"
        return f"below target: {what}; {REASONS[reasons[0]].format(in_flight=self.camera.config.in_flight)}"
