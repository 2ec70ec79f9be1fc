"""The error of every refused checkpoint, and how its message names many weights."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message says what was expected, what was found and what to do."""


def named(names: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 5 more`: the first `most` names in order, and how many there are besides."""
    every = sorted(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
