"""Keeps an embedded server answering: a process that has ended is noticed within a second, one that hangs by a real
inference, and the server is started again on the same ports."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError

RESTARTS, PER_SECONDS = 5, 600.0
"""More restarts than that in that time mean that starting again does not help."""
PATIENCE = 2
"""Failed probes in a row before a restart: one may be a burst of work."""
LAST_FRAMES_S = 3.0
"""A broken server's time to answer what it still can. Triton waits much longer for a process that is not there."""
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
    failed = 0
    while not ended.is_set():
        try:
            server.wait(interval)
        except ServerError as error:
            return None if ended.is_set() else str(error)  # whoever ends the supervision may stop the server
        try:
            server.probe()
            failed = 0
        except ServerError as error:
            failed += 1
            if failed >= PATIENCE:
                return str(error)
    return None
