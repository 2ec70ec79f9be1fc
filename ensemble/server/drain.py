"""Ends the work of a server before the server: all frames that it holds are answered, later ones are refused."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from ensemble.ending import Ending
from ensemble.server.health import Health
from ensemble.server.requirements import ServerError

DRAIN_S = 30.0
"""Frames of which the last is not answered within that time go without an answer."""
POLL_S = 0.02
log = logging.getLogger(__name__)


def drain(ending: Ending, health: Health, seconds: float = DRAIN_S) -> bool:
    """Returns when nothing is worked on any more, or after `seconds`: False then.

    Each front model is sent a frame first. Its queue is first in, first out, so once that is answered, all that waited
    when the end began has been taken, and the model may refuse what it takes from then on. A video's frame that waits
    is refused: its session begins anew at another server with what the last answer told.
    """
    log.info("ending: what is here is answered, new frames are refused; at most %.0f s", seconds)
    deadline = time.monotonic() + seconds
    last = [threading.Thread(target=_ask, args=(health, front, seconds), daemon=True) for front in health.fronts]
    for thread in last:
        thread.start()
    for thread in last:
        thread.join(max(0.0, deadline - time.monotonic()))
    ending.begin()
    while not ending.idle:
        if time.monotonic() > deadline:
            log.warning("frames are left without an answer after %.0f s", seconds)
            return False
        time.sleep(POLL_S)
    return True


def _ask(health: Health, front: str, seconds: float) -> None:
    with suppress(ServerError):  # a server that is not there holds nothing
        health.probe(front, seconds)
