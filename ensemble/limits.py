"""How much one call takes, where memory may not suffice for all."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Limit:
    """How much of something one call takes at most: as much as `largest`, less where memory is short. `told` says so in
    a log, with a place for the number."""

    largest: int
    told: str
    most: int = field(init=False)

    def __post_init__(self) -> None:
        self.most = self.largest

    def __str__(self) -> str:
        return self.told % self.most

    def shrink(self) -> bool:
        """Half as much from now on; whether that was possible."""
        possible = self.most > 1
        self.most = max(1, self.most // 2)
        return possible

    def grow(self) -> bool:
        """Twice as much from now on; whether there is any to come."""
        possible = self.most < self.largest
        self.most = min(2 * self.most, self.largest)
        return possible


def is_out_of_memory(error: Exception) -> bool:
    """Whether a call failed for lack of memory, whichever library says so."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()
