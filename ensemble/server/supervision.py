"""Keeps an embedded server answering: a process that has ended is noticed within a second, one that hangs by a real
inference, and the server is started again on the same ports.

The inference waits behind all other work, so that it comes late says nothing while the work goes on: a server is
started again only where nothing at all is answered any more, or where the inference is answered with an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ensemble.server.health import Health
from ensemble.server.requirements import ServerError
from ensemble.spec import is_front_name

if TYPE_CHECKING:  # the container's probe reads this module, and has the standard library only
    from ensemble.server.embedded import EmbeddedServer

RESTARTS, PER_SECONDS = 5, 600.0
"""More restarts than that in that time mean that starting again does not help."""
PATIENCE = 2
"""Probes in a row that are answered with an error before a restart."""
SILENCE_S = 60.0
"""A front model that answers neither its probe nor anybody else for so long hangs."""
LONGEST_SILENCE_S = 900.0
"""The same while the engine model goes on: other front models may be before this one, and on the CPU one batch of a
large checkpoint takes minutes."""
OVERTAKEN = 1000
"""So many more answers than requests waited before the probe, and none to the probe: a part of the server hangs."""
POLL_S = 1.0
LAST_FRAMES_S = 1.0
"""A broken server's time to answer what it still can. Triton waits much longer for a process that is not there."""
BUSY_SHARE = 0.1
"""Of a processor, which an engine that computes takes at least."""
log = logging.getLogger(__name__)


def supervise(server: EmbeddedServer, interval: float, ended: threading.Event | None = None) -> None:
    """Probes the server every `interval` seconds and restarts it where it does not answer.

    Ends when `ended` is set, or with a ServerError where starting again does not help.
    """
    ended = ended or threading.Event()
    restarts: deque[float] = deque(maxlen=RESTARTS)
    while (reason := _until_broken(server, interval, ended)) is not None:
        if len(restarts) == RESTARTS and time.monotonic() - restarts[0] < PER_SECONDS:
            raise ServerError(
                f"{reason}\nstarted again {RESTARTS} times within {PER_SECONDS / 60:.0f} minutes: giving up"
            )
        restarts.append(time.monotonic())
        log.warning("%s\nstarting Triton again", reason)
        server.stop(LAST_FRAMES_S)
        server.start()
        log.warning("ready again")


def _until_broken(server: EmbeddedServer, interval: float, ended: threading.Event) -> str | None:
    """Blocks while the server answers; returns why it does not, None when the supervision ended."""
    health = server.health
    failed = 0
    while not ended.is_set():
        try:
            server.wait(interval)
            probes = [Probe(health, front) for front in health.fronts]
            while any(probe.open for probe in probes) and not ended.is_set():
                server.wait(POLL_S)
                for probe in probes:
                    if probe.open and (silent := probe.look()):
                        return silent
        except ServerError as error:
            return None if ended.is_set() else str(error)  # whoever ends the supervision may stop the server
        errors = [probe.error for probe in probes if probe.error]
        failed = failed + 1 if errors else 0
        if failed >= PATIENCE and not ended.is_set():
            return errors[0]
    return None


class Probe:
    """One inference under way at a front model, in a thread of its own. `error` says what it was answered with, if that
    is no answer."""

    def __init__(self, health: Health, front: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._health, self._front, self._clock, self.error = health, front, clock, ""
        self._sent = self._sign = self._engine_sign = clock()
        answered, waiting = health.answered(), health.waiting().get(front)
        self._answered, self._engine = answered.get(front, 0), self._engine_work(answered)
        self._due = None if waiting is None else self._answered + waiting + OVERTAKEN
        self._thread = threading.Thread(target=self._ask, name=f"probe {front}", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        return self._thread.is_alive()

    def look(self) -> str:
        """Why the front model must be taken for hanging; empty while it may be busy."""
        now, answered = self._clock(), self._health.answered()
        if answered.get(self._front, 0) > self._answered:
            self._answered, self._sign = answered[self._front], now
        engine = self._engine_work(answered)
        if engine[0] > self._engine[0] or engine[1] > self._engine[1] + BUSY_SHARE * (now - self._engine_sign):
            self._engine, self._engine_sign = engine, now
        if not self.open:
            return ""
        if self._due is not None and self._answered > self._due:
            return (
                f"{self._front} does not answer: a frame has waited {now - self._sent:.0f} s, and more have been"
                " answered since than waited before it"
            )
        silent, still = now - self._sign, now - self._engine_sign
        if silent > LONGEST_SILENCE_S or min(silent, still) > SILENCE_S:
            return f"{self._front} does not answer: nothing for {silent:.0f} s, and a frame is waiting"
        return ""

    def _ask(self) -> None:
        try:
            self._health.probe(self._front, LONGEST_SILENCE_S + SILENCE_S)
        except ServerError as error:
            self.error = str(error)

    def _engine_work(self, answered: Mapping[str, int]) -> tuple[int, float]:
        """Of the engine model; in the container, of the sub-models that Triton runs itself."""
        own = sum(count for model, count in answered.items() if not is_front_name(model))
        return own, self._health.engine_seconds()
