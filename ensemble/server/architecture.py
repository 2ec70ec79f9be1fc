"""The sizes of SAM3's layers, which its cost in arithmetic and in memory depends on. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from ensemble.spec import Checkpoint, Layers, check_resolution

_OF_CHECKPOINT = {"patch": "patch_size", "fpn": "hidden_size", "queries": "num_queries", "context": "context_length"}
"""Name of a size here -> in a `Checkpoint`."""


@dataclass(frozen=True, slots=True)
class Architecture(Layers):
    """The sizes that the cost depends on; the defaults are `facebook/sam3`."""

    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Architecture:
        return cls(checkpoint=checkpoint, **asdict(checkpoint.layers))

    @property
    def patch(self) -> int:
        return self.checkpoint.patch_size

    @property
    def fpn(self) -> int:
        """Width of neck, DETR and masks."""
        return self.checkpoint.hidden_size

    @property
    def queries(self) -> int:
        return self.checkpoint.num_queries

    @property
    def context(self) -> int:
        return self.checkpoint.context_length

    def patches(self, resolution: int) -> int:
        """n = p². Raises ValueError where the resolution is no multiple of the patch."""
        check_resolution(resolution, self.patch)
        return (resolution // self.patch) ** 2

    def padded(self, resolution: int) -> int:
        """Patches after each side is filled up to whole windows: what windowed attention computes on."""
        return (math.ceil(resolution // self.patch / self.window) * self.window) ** 2

    def to_dict(self) -> dict[str, float]:
        """Every size by name, as result files hold them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "checkpoint"}
        return own | {name: getattr(self, name) for name in _OF_CHECKPOINT}

    @classmethod
    def from_dict(cls, sizes: Mapping[str, float]) -> Architecture:
        """The inverse of `to_dict`; a size that is not there is SAM3's. Raises TypeError on unknown names."""
        own = {name: size for name, size in sizes.items() if name not in _OF_CHECKPOINT}
        checkpoint = _sizes_of(**{n: int(s) for n, s in sizes.items() if n in _OF_CHECKPOINT})
        return cls(checkpoint=checkpoint, **own)  # type: ignore[arg-type]


def _sizes_of(**sizes: int) -> Checkpoint:
    """A checkpoint with these sizes; no cost depends on its name or on the resolution that it was trained at."""
    return Checkpoint(**{_OF_CHECKPOINT[name]: size for name, size in sizes.items()})  # type: ignore[arg-type]


SAM3 = Architecture()
