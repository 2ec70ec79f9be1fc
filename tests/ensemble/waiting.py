"""Waiting for what must come, however slow the machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE_S = 300.0


def until(true: Callable[[], object], *threads: threading.Thread) -> None:
    """Returns as soon as `true()` is; fails after five minutes, or when one of the `threads` that it takes has
    ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        ended = [thread.name for thread in threads if not thread.is_alive()]
        assert not ended or true(), f"it cannot come: {', '.join(ended)} has ended"
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.02)
