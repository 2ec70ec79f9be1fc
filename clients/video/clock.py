"""Clocks of films and cameras: times that begin at 0, never go back and keep real seconds, and the pace of bursts.

What a file says of its times is taken as far as it can be true. Recordings begin at any hour, are joined end to end,
and come from cameras whose clocks are set while they record; some streams carry no times at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

USUAL_FPS = 25.0
"""Of a film that does not say."""
FASTEST_FPS, SLOWEST_FPS = 480.0, 1 / 60
"""Rates outside are clocks of containers (90,000 ticks a second, 1,000) or guesses."""
MOST_ALIKE = 8
"""Frames in a row that may carry the same time; after more of them, times are not told at all."""
FASTER = 1.25
"""How much faster than its own clock a burst is played until it is made up for."""
PATIENCE_S = 20.0
"""A stream that is still early after so many seconds of waiting has a clock that runs slow."""
LONGEST_WAIT_S = 1.0


def likely_rate(rates: Iterable[float | None]) -> float:
    """The first of the rates, in frames per second, that a film can have; `USUAL_FPS` if none can be true."""
    for rate in rates:
        if rate is not None and SLOWEST_FPS <= rate <= FASTEST_FPS:
            return float(rate)
    return USUAL_FPS


class FilmClock:
    """Seconds of a film from its first frame, out of the times that its frames carry.

    A step back, or one ahead by more than `longest_s` seconds, is a clock that was set or another recording: the film
    goes on one frame later, and by the old clock should that come back. So do frames without a time.
    """

    def __init__(self, fps: float, longest_s: float) -> None:
        self._step, self._longest = 1 / fps, longest_s
        self._seconds: float | None = None
        self._raw, self._alike = math.nan, 0
        self._first_offset = self._offset = 0.0

    def seconds(self, raw: float | None) -> float:
        """The time of the next frame, which carries `raw` (None: nothing); never less than the last one's."""
        known = raw is not None and math.isfinite(raw)
        if self._seconds is None:
            if known:
                self._raw = self._first_offset = self._offset = float(raw)  # type: ignore[arg-type]
            self._seconds = 0.0
        elif not known:
            self._seconds += self._step
        else:
            self._seconds = self._told(float(raw), self._seconds)  # type: ignore[arg-type]
        return self._seconds

    def _told(self, raw: float, last: float) -> float:
        if raw == self._raw and self._alike < MOST_ALIKE:
            self._alike += 1
            return last
        if raw != self._raw:
            self._raw, self._alike = raw, 0
        for offset in (self._first_offset, self._offset):
            if last < raw - offset <= last + self._longest:
                self._offset = offset
                return raw - offset
        self._offset = raw - last - self._step
        return last + self._step


class Pace:
    """Spreads frames that arrive in bursts over the time that they were taken in.

    Until a burst is made up for, it is played `FASTER` than its clock. A `steady` one, which always has frames in hand
    (the segments of HLS), is played exactly by its clock.
    """

    def __init__(self, steady: bool = False) -> None:
        self._speed = 1.0 if steady else FASTER
        self._patience = math.inf if steady else PATIENCE_S
        self._due = self._film_s = -math.inf
        self._waited = 0.0

    def wait_s(self, film_s: float, now: float) -> float:
        """How long the frame of that time in the film waits before it is handed out, both in seconds."""
        due = self._due + (film_s - self._film_s) / self._speed if self._due > -math.inf else now
        self._film_s = film_s
        wait = min(due - now, LONGEST_WAIT_S)
        if wait <= 0 or self._waited > self._patience:
            self._due = now
            self._waited = 0.0 if wait <= 0 else self._waited
            return 0.0
        self._due = now + wait
        self._waited += wait
        return wait
