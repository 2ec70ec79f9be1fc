"""Schemes that are exported before they are measured: the small checkpoint in ONNX Runtime, in fp32 and in INT8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ensemble.server.repository import Served, read
from ensemble.spec import MB, Variant
from export.checkpoint import load
from export.engines.registry import ready
from export.gate.frames import drawn_frames
from export.slim import figures
from export.tiny import CHECKPOINT
from export.tiny.evaluate import held_out, judge
from export.variant import Job, export_variant
from perf.bench.in_process import opened
from perf.bench.weights.probe import measured
from perf.bench.weights.schemes import EXPORTED

ENGINE = "onnxruntime"


def rows_of_exported(
    scheme: str, resolutions: Sequence[int], scenes: int, device: str, work: Path
) -> Iterator[dict[str, Any]]:
    """A row for each resolution of one of `EXPORTED`, as they come. Raises ValueError where the engine does not make
    its precision or the device is no processor, and what an export raises."""
    if device != "cpu":
        raise ValueError(f"expected --device cpu for {scheme}, which {ENGINE} computes, got {device}: leave it out")
    precision = EXPORTED[scheme]
    ready(ENGINE, precision=precision)
    source = load(str(CHECKPOINT))
    for resolution in resolutions:
        root = work / f"repository-{precision}-{resolution}"
        variant = Variant(resolution, source.record.num_queries, precision, checkpoint=source.record)
        export_variant(Job(source, variant, ENGINE, root, drawn_frames(2, resolution)))
        yield from (_row(scheme, served, root, scenes) for served in read(root))


def _row(scheme: str, served: Served, root: Path, scenes: int) -> dict[str, Any]:
    resolution = served.variant.resolution
    precise = {}
    if scenes:
        with opened(served) as answer:
            cases = list(held_out(scenes))
            precise = figures.row(scheme, resolution, scenes, judge(zip(cases, answer(cases), strict=True)))
    seen = measured(scheme, root, resolution, "cpu")
    features = served.artifacts[0].manifest["gate"]["outputs"].values()
    row = {
        "scheme": scheme,
        "resolution": resolution,
        "size_mb": round(sum(artifact.path.stat().st_size for artifact in served.artifacts) / MB, 2),
        "cosine": min(check["cosine"] for check in features),
        **({"cpu_ms": seen.pop("ms")} if "ms" in seen else {}),
        **seen,
    }
    return row | precise
