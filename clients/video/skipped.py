"""What of a source could not be decoded and was left out, so that the rest could be answered: how much, and why."""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger(__name__)

KINDS = 10
"""Different sentences that are kept: a long run must not grow."""
LOGGED = 100
"""Sentences that are logged, so that a damaged source does not fill a log."""


class Skipped:
    """Counts what was left out. `count` is how many pictures or packets, `why` the first sentences about them."""

    def __init__(self) -> None:
        self.count = 0
        self.why: Counter[str] = Counter()

    def add(self, sentence: str) -> None:
        """One more, with the sentence that names it."""
        self.count += 1
        if sentence in self.why or len(self.why) < KINDS:
            self.why[sentence] += 1
        if self.count <= LOGGED:
            logger.warning("skipped: %s", sentence)
