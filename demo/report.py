"""The report of a run: a table, the figures in the mosaic, and the JSON line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from clients.fleet.stats import percentiles
from demo.cameras import Reel, mean_batch
from demo.mosaic import Figures
from demo.score import Score
from ensemble.spec import DEFAULT_THRESHOLD, STAGES


def summary(reels: Sequence[Reel], seconds: float, total: Score) -> dict[str, Any]:
    """The JSON line: times in milliseconds, `fps` of all cameras together, `map50` of boxes at IoU 0.5."""
    latencies = [ms for reel in reels for ms in reel.latencies]
    frames = len(latencies)
    p50, p95 = percentiles(latencies)
    return {
        "cameras": len(reels),
        "frames": frames,
        "failed": sum(len(reel.errors) for reel in reels),
        "fps": round(frames / seconds, 2) if seconds else 0.0,
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "mean_batch": round(mean_batch(reels), 2),
        "detections": sum(_detections(reel) for reel in reels),
        "map50": _number(total.boxes),
        "mask_map50": _number(total.masks),
    }


def table(reels: Sequence[Reel], result: dict[str, Any], total: Score, scores: Sequence[Score]) -> Table:
    """One row per camera, and one for all."""
    sheet = Table(title=f"{result['cameras']} cameras, one server", show_footer=True)
    footers = {
        "camera": "all",
        "classes": f"{len({c for reel in reels for c in reel.film.classes})} different",
        "frames": str(result["frames"]),
        "failed": str(result["failed"]),
        "fps": f"{result['fps']:.1f}",
        "p50 ms": f"{result['p50_ms']:.0f}",
        "p95 ms": f"{result['p95_ms']:.0f}",
        "batch": f"{result['mean_batch']:.2f}",
        "found": str(result["detections"]),
        "box AP50": _text(total.boxes),
        "mask AP50": _text(total.masks),
    }
    for name, footer in footers.items():
        sheet.add_column(
            name,
            footer=footer,
            justify="left" if name in ("camera", "classes") else "right",
            no_wrap=name != "classes",
            min_width=16 if name == "classes" else None,
        )
    for reel, own in zip(reels, scores, strict=True):
        p50, p95 = percentiles(reel.latencies)
        sheet.add_row(
            reel.film.name,
            ", ".join(reel.film.classes),
            str(len(reel.shots)),
            str(len(reel.errors)),
            f"{reel.frames_per_second:.1f}",
            f"{p50:.0f}",
            f"{p95:.0f}",
            f"{mean_batch([reel]):.2f}",
            str(_detections(reel)),
            _text(own.boxes),
            _text(own.masks),
            style="red" if reel.errors else None,
        )
    return sheet


def figures(reels: Sequence[Reel], result: dict[str, Any], model: str) -> Figures:
    """The figures for the mosaic's last panel."""
    stages = np.array([[shot.found.stage_ms[stage] for stage in STAGES] for reel in reels for shot in reel.shots])
    return Figures(
        title="SAM3 on Triton",
        subtitle=f"{result['cameras']} cameras, each with its own classes, one model: {model}",
        values=(
            (f"{result['fps']:.1f}", "frames per second"),
            (_time(result["p95_ms"]), "p95 round trip"),
            (f"{result['mean_batch']:.1f}", "frames per batch"),
            (f"{result['detections']}", "detections"),
            (_text(total) if (total := result["map50"]) is not None else "-", "box AP50"),
            (_text(masks) if (masks := result["mask_map50"]) is not None else "-", "mask AP50"),
        ),
        stage_ms=dict(zip(STAGES, stages.mean(axis=0).tolist(), strict=True)) if len(stages) else {},
    )


def _detections(reel: Reel) -> int:
    return sum(len(shot.found.above(DEFAULT_THRESHOLD)) for shot in reel.shots)


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
