"""Where a prediction's measurements come from: names of published tables and files of sweeps go in, samples and what they were measured with come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.memory import SAM3, Architecture
from perf import results
from perf.calibrate import Calibration, fit
from perf.published import BANDWIDTH_GB_S, TABLES, Measurement
from perf.tables import front_rows


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measurements of one machine and one model."""

    name: str
    samples: tuple[Measurement, ...]
    architecture: Architecture
    bandwidth_gb_s: float

    def calibration(self) -> Calibration:
        return fit(self.samples, self.architecture, self.bandwidth_gb_s)

    def find(self, resolution: int, cameras: int, classes: int) -> Measurement | None:
        """The point that was measured under exactly these conditions."""
        for sample in self.samples:
            if (sample.resolution, sample.cameras_served, sample.classes) == (resolution, cameras, classes):
                return sample
        return None


def published(name: str) -> Evidence:
    """One of `perf.published.TABLES`. Raises ValueError for another name."""
    if name not in TABLES:
        raise ValueError(f"expected one of {', '.join(TABLES)}, got {name!r}; a sweep's file is given with --sweep")
    return Evidence(name, TABLES[name], SAM3, BANDWIDTH_GB_S[name])


def from_sweep(path: Path, bandwidth_gb_s: float | None = None) -> Evidence:
    """The front model's closed-loop rows of a sweep. Raises ResultsError where it has none."""
    sweep = results.read(path)
    here = bool(sweep.machine) and sweep.machine == results.machine()
    rows = front_rows(sweep.rows)
    if not rows:
        raise results.ResultsError(f"{path} has no row of a front model under steady load; measure one with sam3-perf sweep")
    queries = int(sweep.setting.get("queries", SAM3.queries))
    samples = tuple(_sample(row, f"{sweep.where}, {path.name} of {sweep.date}", here, queries) for row in rows)
    known = sweep.setting.get("architecture")
    return Evidence(str(path), samples, Architecture(**known) if known else SAM3, bandwidth_gb_s or 1000.0)


def _sample(row: dict[str, Any], where: str, here: bool, queries: int) -> Measurement:
    batch = float(row["mean_batch"]) or 1.0
    return Measurement(
        resolution=int(row["resolution"]),
        batch=batch,
        classes=int(row["classes"]),
        ms=batch * 1e3 / float(row["fps"]),
        memory_mb=float(row["gpu_memory_mb"] or 0) or None,  # processes on a CPU keep what they once had: no measure of need
        p95_ms=float(row["p95_ms"]),
        queries=queries,
        where=where,
        cameras=int(row["cameras"]),
        here=here,
    )


def gather(tables: Sequence[str], sweeps: Sequence[Path]) -> list[Evidence]:
    """The reader's own sweeps first, then published tables."""
    return [*(from_sweep(path) for path in sweeps), *(published(name) for name in tables)]
