"""One output of a sub-model against what it should be: cosine and relative error, and whether they are within limits.

NumPy only: the export and the machines that serve its artifacts compare alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.gate.limits import Limits


class GateError(RuntimeError):
    """An artifact does not compute what its checkpoint does; the message names the outputs."""


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of one sub-model against the reference, over all samples."""

    model: str
    output: str
    cosine: float
    relative: float

    def failure(self, limits: Limits) -> str | None:
        if not (self.cosine >= limits.cosine):  # written so that NaN fails
            return f"{self.model}: {self.output} has cosine {self.cosine:.6f}, expected at least {limits.cosine}"
        if not (self.relative <= limits.relative):
            return (
                f"{self.model}: {self.output} has relative error {self.relative:.2e}, expected at most"
                f" {limits.relative:.0e}"
            )
        return None


def compare(found: np.ndarray, wanted: np.ndarray, peak: float | None = None) -> tuple[float, float]:
    """Cosine of the flattened tensors, and max|found-wanted| / max|wanted|; `peak` is max|wanted| of the whole tensor
    where these are some of its values. Raises GateError where the shapes differ."""
    if found.shape != wanted.shape:
        raise GateError(
            f"expected shape {wanted.shape}, got {found.shape}; export again, ensemble/spec.py and the artifact"
            " disagree"
        )
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    if not np.isfinite(a).all():
        return float("nan"), float("inf")
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(a @ b / norms) if norms else float(not a.any() and not b.any())
    largest = float(np.abs(b).max(initial=0.0)) if peak is None else peak
    return cosine, float(np.abs(a - b).max(initial=0.0) / (largest or 1.0))


def unpack(bits: np.ndarray, size: int) -> np.ndarray:
    """Packed mask rows uint8 [...,ceil(size/8)] -> bool [...,size]."""
    return np.unpackbits(bits, axis=-1)[..., :size].astype(bool)
