"""How a call of given sizes is run: kernels made for just these sizes or for all, replayed as one graph or launched.

Pure decisions, apart from any GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

SMALL_IMAGES = 1
"""Frames up to which the processor's launches take longer than the GPU's work, as `engines/aoti.py` measured."""
FEATURES = ("pixel_values", "fpn_2")
"""First inputs of vision encoder, and of decoder and geometry encoder, whose first axis are frames. Shapes of the mask
head change from frame to frame, and the text encoder runs once a name: a graph of those is not worth its memory."""


@dataclass(frozen=True, slots=True)
class Way:
    """`exact`: kernels for just these sizes are finished before the call; otherwise general ones answer until those are
    there. `graph`: the whole call is captured and replayed."""

    exact: bool
    graph: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes that a plan was built for: of each input that varies, its smallest, usual and largest shape."""

    smallest: Shapes
    usual: Shapes
    largest: Shapes

    @property
    def all(self) -> list[dict[str, tuple[int, ...]]]:
        """The three, each once, the smallest first."""
        found: list[dict[str, tuple[int, ...]]] = []
        for shapes in (self.smallest, self.usual, self.largest):
            if dict(shapes) not in found:
                found.append(dict(shapes))
        return found

    def why_outside(self, shapes: Shapes) -> str | None:
        """The first input whose shape the plan does not take, and what it takes; None where there is none."""
        for name, shape in shapes.items():
            least, most = self.smallest[name], self.largest[name]
            inside = len(shape) == len(least) and all(
                a <= size <= b for a, size, b in zip(least, shape, most, strict=True)
            )
            if not inside:
                return f"expected {name} of {list(least)} to {list(most)}, got {list(shape)}"
        return None


def way_of(shapes: Shapes, profile: Profile) -> Way:
    """Sizes of the profile are worth kernels of their own before anybody waits; others come by chance."""
    first = next(iter(shapes))
    return Way(exact=dict(shapes) in profile.all, graph=first in FEATURES and shapes[first][0] <= SMALL_IMAGES)
