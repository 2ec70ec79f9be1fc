"""Waiting for what must come, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 300.0


def until(true: Callable[[], object]) -> None:
    """Returns as soon as `true()` is; fails after five minutes."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.02)
