"""Milliseconds and megabytes from operations and bytes: a `Calibration`, fitted to measurements, predicts other points.

    ms per frame  = per frame + per call / batch + TFLOP x ms per TFLOP + bytes of unfused attention scores / bandwidth
    megabytes     = as `ensemble/server/memory.py` says of plans

The names "per frame" (decoding, resizing, copying), "per call" and "ms per TFLOP", and of the memory "base" and
"activations", are fitted, by least squares of relative errors and never below zero; the rest is computed. Few
coefficients, so that a handful of points suffices and leaving one out means something. Memory of compiled packages is
not fitted here: `perf.capacity.evidence.packages_mb`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ensemble.server.architecture import SAM3, Architecture
from ensemble.server.memory import Footprint, need, score_bytes
from perf.capacity.model import frame_flops
from perf.capacity.published import PLAN_BATCH, Measurement

PASSES = 2
"""Each of the two copies of the attention scores is written once and read once."""


class CalibrationError(ValueError):
    """Too few measurements to fit; the message says how many there are and where more come from."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted coefficients; see the module. `footprint` is None for packages, and where no memory was
    measured."""

    architecture: Architecture
    bandwidth_gb_s: float
    where: str
    per_frame_ms: float
    per_call_ms: float
    ms_per_tflop: float
    footprint: Footprint | None
    p95_ratio: float
    queries: int
    packages: bool

    def ms_per_frame(self, resolution: int, batch: float, classes: int, queries: int | None = None) -> float:
        """Milliseconds of the GPU or the processor for one frame out of a batch."""
        columns = time_columns(self.architecture, resolution, batch, classes, queries or self.queries)
        fitted = np.dot(columns, (self.per_frame_ms, self.per_call_ms, self.ms_per_tflop))
        return float(fitted) + score_ms(self.architecture, resolution, self.bandwidth_gb_s, self.packages)

    def memory_mb(
        self, resolution: int, batch: float, classes: int, queries: int | None = None, plan_batch: int = PLAN_BATCH
    ) -> float | None:
        """Megabytes on the GPU, Triton's pool not counted, with `batch` frames under way and plans built for
        `plan_batch`; None where no memory calibrates it."""
        if self.footprint is None:
            return None
        queries = queries or self.queries
        sample = Measurement(resolution, batch, classes, 0.0, queries=queries, plan_batch=plan_batch)
        return computed(self.footprint, self.architecture, sample)


def fit(
    samples: Sequence[Measurement], architecture: Architecture = SAM3, bandwidth_gb_s: float = 1792.0
) -> Calibration:
    """Raises CalibrationError for fewer than two samples."""
    if len(samples) < 2:
        raise CalibrationError(
            f"at least 2 measured points are needed to calibrate, got {len(samples)}; sam3-perf sweep makes them"
        )
    rows = [time_columns(architecture, s.resolution, s.batch, s.classes, s.queries) for s in samples]
    rest = [s.ms_per_frame - score_ms(architecture, s.resolution, bandwidth_gb_s, s.packages) for s in samples]
    per_frame, per_call, per_tflop = least_squares(rows, rest, [s.ms_per_frame for s in samples])
    ratios = [s.p95_ms / s.ms for s in samples if s.p95_ms]
    return Calibration(
        architecture=architecture,
        bandwidth_gb_s=bandwidth_gb_s,
        where=samples[0].where,
        per_frame_ms=per_frame,
        per_call_ms=per_call,
        ms_per_tflop=per_tflop,
        footprint=_fit_memory(samples, architecture),
        p95_ratio=median(ratios) if ratios else 1.3,
        queries=samples[0].queries,
        packages=samples[0].packages,
    )


def _fit_memory(samples: Sequence[Measurement], a: Architecture) -> Footprint | None:
    measured = [(s, s.memory_mb) for s in samples if s.memory_mb and not s.packages]
    if len(measured) < 2:
        return None
    rows = [(1.0, a.patches(s.resolution) / 1e3 * s.plan_batch) for s, _ in measured]
    rest = [memory - computed(Footprint(0.0, 0.0, ""), a, s) - s.pool_mb for s, memory in measured]
    base, activation = least_squares(rows, rest, [memory for _, memory in measured])
    return Footprint(base, activation, samples[0].where)


def computed(footprint: Footprint, a: Architecture, s: Measurement) -> float:
    """Megabytes of plans under the sample's load, Triton's pool not counted."""
    return need(footprint, s.resolution, max(1, round(s.batch)), a, s.queries, plan_batch=s.plan_batch).total


def fused(packages: bool) -> bool | None:
    """Whether attention is, as `ensemble.server.memory.score_bytes` takes it: PyTorch's kernels always are, plans by
    the rule there."""
    return True if packages else None


def time_columns(
    a: Architecture, resolution: int, batch: float, classes: int, queries: int
) -> tuple[float, float, float]:
    """What the three fitted coefficients of time are multiplied by."""
    return 1.0, 1 / batch, frame_flops(resolution, classes, a, queries) / 1e12


def score_ms(a: Architecture, resolution: int, bandwidth_gb_s: float, packages: bool) -> float:
    """Milliseconds a frame of reading and writing attention scores in the global layers, where attention is not
    fused."""
    return PASSES * a.global_layers * score_bytes(resolution, 1, a, fused=fused(packages)) / (bandwidth_gb_s * 1e6)


def least_squares(rows: Sequence[Sequence[float]], values: Sequence[float], scale: Sequence[float]) -> list[float]:
    """The x >= 0 that makes rows·x come nearest to `values`, errors counted relative to `scale`: the most negative
    column is dropped until none is."""
    matrix = np.asarray(rows, float) / np.asarray(scale, float)[:, None]
    target = np.asarray(values, float) / np.asarray(scale, float)
    kept = list(range(matrix.shape[1]))
    found = np.zeros(matrix.shape[1])
    while kept:
        found[:] = 0
        found[kept] = np.linalg.lstsq(matrix[:, kept], target, rcond=None)[0]
        worst = min(kept, key=lambda column: found[column])
        if found[worst] >= 0:
            break
        kept.remove(worst)
    return [float(value) for value in np.maximum(found, 0)]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One point as the others predict it; errors are (predicted - measured) / measured."""

    measured: Measurement
    ms_per_frame: float
    memory_mb: float | None

    @property
    def time_error(self) -> float:
        return self.ms_per_frame / self.measured.ms_per_frame - 1

    @property
    def memory_error(self) -> float | None:
        return self.memory_mb / self.measured.memory_mb - 1 if self.memory_mb and self.measured.memory_mb else None


def leave_one_out(
    samples: Sequence[Measurement], architecture: Architecture = SAM3, bandwidth_gb_s: float = 1792.0
) -> list[LeftOut]:
    """Each sample, predicted by a calibration on all the others. Raises CalibrationError for fewer than three."""
    if len(samples) < 3:
        raise CalibrationError(f"at least 3 measured points are needed to leave one out, got {len(samples)}")
    found = []
    for index, sample in enumerate(samples):
        others = fit([*samples[:index], *samples[index + 1 :]], architecture, bandwidth_gb_s)
        ms = others.ms_per_frame(sample.resolution, sample.batch, sample.classes, sample.queries)
        memory = others.memory_mb(sample.resolution, sample.batch, sample.classes, sample.queries, sample.plan_batch)
        found.append(LeftOut(sample, ms, None if memory is None else memory + sample.pool_mb))
    return found
