"""Measurements that others published, and those that this project made before it had a sweep, each with its source.

They calibrate `sam3-perf capacity` where the reader gives no sweep, and `sam3-perf check` predicts them.
"""

from __future__ import annotations

from dataclasses import dataclass

GUIDE = "RTX 5090, TensorRT FP16, 50 queries; a published resolution guide, another pipeline than this server"
H200_EAGER = "H200, transformers 5.17 eager in bf16, PyTorch 2.11, 840 M random weights"
H200_COMPILED = "H200, transformers 5.17 with torch.compile in bf16, PyTorch 2.11, 840 M random weights"
PLAN_BATCH = 8
"""Frames that the published plans were built for, and that a `Variant` is made for by default."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured point: `ms` per round of `batch` frames, memory in MB as nvidia-smi counts it, None where it was not
    published.

    In a sweep `batch` is the mean batch that Triton formed and `cameras` how many requests were under way; elsewhere
    both are the same.
    """

    resolution: int
    batch: float
    classes: int
    ms: float
    memory_mb: float | None = None
    p95_ms: float | None = None
    queries: int = 200
    where: str = ""
    cameras: int = 0
    here: bool = False  # measured on the reader's machine
    plan_batch: int = PLAN_BATCH
    pool_mb: float = 0.0  # of Triton; part of the memory
    packages: bool = False  # PyTorch's: they take memory as frames and pairs come, and never store attention scores

    @property
    def cameras_served(self) -> int:
        return self.cameras or round(self.batch)

    @property
    def ms_per_frame(self) -> float:
        return self.ms / self.batch


def _guide(resolution: int, batch: int, ms: float, memory: float, p95: float) -> Measurement:
    return Measurement(resolution, batch, 4, ms, memory, p95, 50, GUIDE)


RTX_5090 = (
    _guide(1008, 1, 62.5, 7064, 87.2),
    _guide(840, 1, 50.3, 6050, 73.6),
    _guide(672, 1, 35.1, 4582, 59.8),
    _guide(560, 1, 28.4, 3874, 46.6),
    _guide(840, 8, 446, 12909, 612),
    _guide(672, 8, 253, 4846, 319),
    _guide(560, 8, 216, 4060, 271),
)
H200 = {
    "h200-eager": tuple(
        Measurement(r, b, c, vision + decode, where=H200_EAGER)
        for r, b, c, vision, decode in (
            (1008, 1, 1, 23.2, 16.5),
            (1008, 8, 4, 162.5, 102.0),
            (840, 8, 4, 137.2, 68.5),
            (672, 8, 4, 72.2, 42.4),
            (560, 8, 4, 63.6, 31.4),
        )
    ),
    "h200-compiled": (
        Measurement(1008, 8, 4, 109.1 + 80.9, where=H200_COMPILED),
        Measurement(672, 8, 4, 47.9 + 32.1, where=H200_COMPILED),
    ),
}
TABLES = {"rtx5090": RTX_5090, **H200}
BANDWIDTH_GB_S = {"rtx5090": 1792.0, "h200-eager": 4300.0, "h200-compiled": 4300.0}
"""RTX 5090: its data sheet. H200: a copy measured at 4.3 TB/s."""
