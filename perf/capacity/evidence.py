"""The measurements that a prediction rests on: published tables, sweeps that come with this repository, and the
reader's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.server.architecture import SAM3, Architecture
from ensemble.server.memory import MB, engine_model_need, text_encoder_bytes, weight_bytes
from ensemble.spec import Checkpoint, Variant
from perf import record, results
from perf.capacity.calibrate import Calibration, fit
from perf.capacity.published import BANDWIDTH_GB_S, PLAN_BATCH, TABLES, Measurement
from perf.tables import front_rows, own_memory

RESULTS = Path(__file__).parents[1] / "results"
END_TO_END = RESULTS / "h100" / "end_to_end.json"
"""Peaks of memory of this server with packages, one process a GPU."""
FP8 = RESULTS / "h200" / "fp8.json"
"""The whole server in fp16 and in fp8 under full load, one after the other."""
PROCESS_A_MODEL = ", when each sub-model was a process of its own"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measurements of one machine and one model."""

    name: str
    samples: tuple[Measurement, ...]
    architecture: Architecture
    bandwidth_gb_s: float
    own: bool = True  # of this server, not of another pipeline
    precision: str = "fp16"

    @property
    def packages(self) -> bool:
        return self.samples[0].packages

    def calibration(self) -> Calibration:
        return fit(self.samples, self.architecture, self.bandwidth_gb_s)

    def find(self, resolution: int, cameras: int, classes: int) -> Measurement | None:
        """The point that was measured under exactly these conditions."""
        for sample in self.samples:
            if (sample.resolution, sample.cameras_served, sample.classes) == (resolution, cameras, classes):
                return sample
        return None


def published(name: str) -> Evidence:
    """One of `perf.capacity.published.TABLES`, or of `committed()`. Raises ValueError for another name."""
    own = committed()
    if name in own:
        return from_sweep(own[name], name)
    if name not in TABLES:
        raise ValueError(
            f"expected one of {', '.join((*TABLES, *own))}, got {name!r}; a sweep's file is given with --sweep"
        )
    return Evidence(name, TABLES[name], SAM3, BANDWIDTH_GB_S[name], own=False)


def from_sweep(path: Path, name: str = "", bandwidth_gb_s: float = 1000.0) -> Evidence:
    """The front model's closed-loop rows of a sweep. Raises ResultsError where it has none."""
    sweep = results.read(path)
    here = bool(sweep.machine) and sweep.machine == record.machine()
    rows = front_rows(sweep.rows)
    if not rows:
        raise results.ResultsError(
            f"{path} has no row of a front model under steady load; measure one with sam3-perf sweep"
        )
    what = f"{sweep.setting.get('engine', '')} {sweep.setting.get('checkpoint', '')}".strip()
    where = (
        f"{'' if here else 'one '}{sweep.where}, this server{f' with {what}' if what else ''}, {path.name} of"
        f" {sweep.date}{PROCESS_A_MODEL if any(_is_process_a_model(row, sweep.setting) for row in rows) else ''}"
    )
    own = own_memory(sweep.rows)
    samples = tuple(_sample(row, sweep.setting, where, here, id(row) in own) for row in rows)
    known = sweep.setting.get("architecture")
    architecture = Architecture.from_dict(known) if known else SAM3
    precision = str(sweep.setting.get("precision") or "fp16")
    return Evidence(name or str(path), samples, architecture, bandwidth_gb_s, precision=precision)


def _sample(row: dict[str, Any], setting: dict[str, Any], where: str, here: bool, own: bool) -> Measurement:
    """`own`: the row's memory is that of its own load."""
    batch = float(row["mean_batch"]) or 1.0
    # With several resolutions loaded the GPU's memory is theirs together.
    counts = own and row.get("loaded", 1) == 1 and not _is_process_a_model(row, setting)
    memory = float(row["gpu_memory_mb"] or 0) if counts else 0.0
    return Measurement(
        resolution=int(row["resolution"]),
        batch=batch,
        classes=int(row["classes"]),
        ms=batch * 1e3 / float(row["fps"]),
        memory_mb=memory or None,
        p95_ms=float(row["p95_ms"]),
        queries=int(setting.get("queries", SAM3.queries)),
        where=where,
        cameras=int(row["cameras"]),
        here=here,
        plan_batch=int(setting.get("max_batch", PLAN_BATCH)),
        pool_mb=float(row.get("pool_mb", 0)),
        packages=setting.get("engine") == "aoti",
    )


def _is_process_a_model(row: dict[str, Any], setting: dict[str, Any]) -> bool:
    """Whether packages handed tensors over through Triton's pool, which the engine model does not use: such a server
    took more memory than today's."""
    return setting.get("engine") == "aoti" and bool(row.get("pool_mb"))


def packages_mb(
    architecture: Architecture,
    resolution: int,
    frames: int,
    classes: int,
    *,
    text_encoder: bool = True,
    precision: str = "fp16",
    engine: str = "aoti",
) -> float:
    """Megabytes that this server with compiled packages, or with the plans of another engine, needs for batches of
    `frames` frames of `classes` classes each, as its start check reckons; with the text encoder on the GPU, or on the
    CPU. Plans reserve what batches of that size need."""
    checkpoint = Checkpoint(hidden_size=architecture.fpn, num_queries=architecture.queries)
    pairs = min(frames * classes, Variant.max_pairs)
    variant = Variant(
        resolution, architecture.queries, precision, max_batch=frames, max_pairs=pairs, checkpoint=checkpoint
    )
    weights = weight_bytes(architecture, precision=precision) - (
        0 if text_encoder else text_encoder_bytes(architecture)
    )
    return engine_model_need([variant], weights / MB, engine).total


def fp8_share(resolution: int) -> float:
    """Share of a frame's time in fp16 that it takes in fp8: the whole server under full load, `FP8`, at the measured
    resolution that is nearest."""
    rows = results.load(FP8)["rows"]
    nearest = min({row["resolution"] for row in rows}, key=lambda r: abs(r - resolution))
    fps = {row["precision"]: float(row["fps"]) for row in rows if row["resolution"] == nearest}
    return fps["fp16"] / fps["fp8"]


def peaks() -> list[tuple[dict[str, Any], float]]:
    """Rows of `END_TO_END` under full load and of one camera, each with what `packages_mb` says."""
    rows = [row for row in results.load(END_TO_END)["rows"] if row["cameras"] == 1 or row["in_flight"] > 1]
    frames = Variant.max_batch
    return [(r, packages_mb(SAM3, r["resolution"], min(r["cameras"], frames), r["classes"])) for r in rows]


def committed() -> dict[str, Path]:
    """Name -> file of the sweeps of SAM3 itself on a GPU that this repository carries:
    `perf/results/<name>/sweep.json`."""
    found = {path.parent.name: path for path in sorted(RESULTS.glob("*/sweep.json"))}
    return {name: path for name, path in found.items() if _is_of_sam3(results.read(path))}


def _is_of_sam3(sweep: results.Results) -> bool:
    return "gpu" in sweep.machine and Architecture.from_dict(sweep.setting.get("architecture", {})) == SAM3


def usual() -> list[str]:
    """What is taken for SAM3 where the reader has no sweep: this server's own on a GPU like the one here, else the
    published table."""
    gpu = record.card().get("gpu")
    own = [name for name, path in committed().items() if gpu and results.read(path).machine["gpu"] == gpu]
    return own or ["rtx5090"]


def gather(tables: Sequence[str], sweeps: Sequence[Path]) -> list[Evidence]:
    """The reader's own sweeps first, then published tables."""
    return [*(from_sweep(path) for path in sweeps), *(published(name) for name in tables)]
