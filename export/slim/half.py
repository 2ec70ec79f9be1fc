"""Weights in 16 bits: which can be, what rounding costs each, and which stay in fp32 and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
BOXES = ("reference_points.", "box_head.", "ref_point_head.", "box_rpb_embed_")
"""Weights that boxes are computed with."""
REASONS = {
    "boxes": "boxes are computed with it",
    "vector": "a norm or a bias: few bytes, and rounding one moves whole channels",
    "overflow": "has values beyond the largest of the dtype",
    "underflow": "is so small that it loses digits",
}
"""Why a weight stays in fp32. The first two go by rule: they are few values, and most of what rounding costs is theirs.
"""


@dataclass(frozen=True)
class Range:
    """One weight in 16 bits: its largest value, how many of its values become zero, and the relative error of rounding
    (|rounded - exact| / |exact|, over all values together)."""

    largest: float
    zeroed: int
    error: float


@dataclass(frozen=True)
class Halved:
    """What `halve` did: `kept` in fp32 by reason, and the `ranges` of all others."""

    dtype: str
    kept: dict[str, list[str]]
    ranges: dict[str, Range]

    def as_dict(self) -> dict[str, object]:
        """For the report: reasons in words, and the ranges of the five that rounding costs most."""
        worst = sorted(self.ranges, key=lambda name: -self.ranges[name].error)[:5]
        return {
            "dtype": self.dtype,
            "tensors": len(self.ranges),
            "stayed_fp32": {reason: {"why": REASONS[reason], "tensors": names} for reason, names in self.kept.items()},
            "values_that_became_zero": sum(found.zeroed for found in self.ranges.values()),
            "largest_value": max((found.largest for found in self.ranges.values()), default=0.0),
            "worst": {name: asdict(self.ranges[name]) for name in worst},
        }


def halve(weights: Mapping[str, Tensor], dtype: str) -> tuple[dict[str, Tensor], Halved]:
    """fp32 weights in `dtype` (fp16 or bf16) where that is safe. Raises ValueError on another dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    halved: dict[str, Tensor] = {}
    kept: dict[str, list[str]] = {}
    ranges: dict[str, Range] = {}
    for name, exact in weights.items():
        rounded, found = _rounded(exact, DTYPES[dtype])
        reason = why_fp32(name, exact, found, DTYPES[dtype])
        if reason or not exact.is_floating_point():
            halved[name] = exact
        else:
            halved[name], ranges[name] = rounded, found
        if reason:
            kept.setdefault(reason, []).append(name)
    return halved, Halved(dtype, kept, ranges)


def why_fp32(name: str, exact: Tensor, found: Range, dtype: torch.dtype) -> str | None:
    """One of `REASONS`, or None for a weight that can be in 16 bits."""
    limits = torch.finfo(dtype)
    if not exact.is_floating_point():
        return None
    if found.largest > limits.max:
        return "overflow"
    if found.error > limits.eps / 2:  # as much as every value rounded by the most that normal numbers are
        return "underflow"
    if any(part in name for part in BOXES):
        return "boxes"
    return "vector" if exact.ndim < 2 else None


def _rounded(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Range]:
    rounded = exact.to(dtype)
    back = rounded.to(exact.dtype)
    norm = float(exact.norm()) if exact.is_floating_point() else 0.0
    error = float((back - exact).norm()) / norm if norm else 0.0
    zeroed = int(((back == 0) & (exact != 0)).sum())
    return rounded, Range(float(exact.abs().max()), zeroed, error)
