"""What served models need of a GPU's memory, by the model in `ensemble/server/memory.py`, and what would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble.server.memory import FOOTPRINTS, Need, engine_model_need, least_engine_model_need, server_need
from ensemble.server.plans_check import scratch_mb
from ensemble.server.repository import Artifact, Served
from ensemble.server.videos import VideoServed
from ensemble.spec import MB, RESOLUTIONS, Variant

Pool = Callable[[Sequence[Variant]], float]
"""Megabytes that Triton's pool has on the GPU where these variants are served; None in its place says that the engine
model holds the sub-models, which hand over nothing."""


def need_of(served: Sequence[Served], pool: Pool | None, videos: Sequence[VideoServed] = ()) -> Need:
    """Megabytes of these front models together; files that several share count once."""
    weights, variants = _weights_mb(served, videos), [s.variant for s in served]
    scratch = scratch_mb(_called(served, videos))
    if not videos:
        return _need(variants, served[0].engine, weights, pool, scratch)
    need = engine_model_need(variants, weights, served[0].engine, scratch, [v.call for v in videos])
    return replace(need, videos=sum(v.bank_mb for v in videos))


def least_need_of(served: Sequence[Served], videos: Sequence[VideoServed] = ()) -> Need:
    """Of the engine model where it splits its work as far as it can."""
    weights, variants = _weights_mb(served, videos), [s.variant for s in served]
    scratch = scratch_mb(_called(served, videos))
    need = least_engine_model_need(variants, weights, served[0].engine, scratch, [v.call for v in videos])
    return replace(need, videos=sum(v.bank_mb for v in videos))


def _called(served: Sequence[Served], videos: Sequence[VideoServed]) -> list[Artifact]:
    return [*(a for s in served for a in s.artifacts), *(a for v in videos for a in v.own)]


def _weights_mb(served: Sequence[Served], videos: Sequence[VideoServed]) -> float:
    return files_mb({a.path for a in _called(served, videos) if a.on_gpu})


def files_mb(paths: Iterable[Path]) -> float:
    """Megabytes of those that are there."""
    return sum(path.stat().st_size for path in paths if path.is_file()) / MB


def _need(
    variants: Sequence[Variant], engine: str, weights_mb: float, pool: Pool | None, scratch: float | None = None
) -> Need:
    if pool is None or engine not in FOOTPRINTS:
        return engine_model_need(variants, weights_mb, engine, scratch)
    return server_need(variants, engine, weights_mb, pool(variants))


def what_fits(served: Sequence[Served], free_mb: float, pool: Pool | None) -> str:
    """The nearest that does: without the largest resolutions; else the last one with smaller batches, or at a lower
    resolution."""
    for first in range(1, len(served)):
        rest = need_of(served[first:], pool)
        if rest.total <= free_mb:
            names = " ".join(str(s.variant.resolution) for s in served[first:])
            return (
                f"It fits with the resolutions {names} alone ({rest.total:,.0f} MB): name them with --resolution, or"
                " SAM3_RESOLUTIONS in the container"
            )
    last, weights = served[-1], need_of(served[-1:], pool).weights

    def needed(**changes: int) -> Need:
        variant = replace(last.variant, **changes)  # type: ignore[arg-type]
        return _need([variant], last.engine, weights, pool)

    batches, lower = range(last.variant.max_batch - 1, 0, -1), [r for r in RESOLUTIONS if r < last.variant.resolution]
    smaller = next((b for b in batches if needed(max_batch=b).total <= free_mb), None)
    coarser = next((r for r in sorted(lower, reverse=True) if needed(resolution=r).total <= free_mb), None)
    found = []
    if smaller:
        made = "served" if last.engine == "aoti" else "exported"  # plans reserve their largest batch at the start
        found.append(
            f"{last.variant.resolution} {made} with --max-batch {smaller} ({needed(max_batch=smaller).total:,.0f} MB)"
        )
    if coarser:
        found.append(f"{coarser} with the same limits ({needed(resolution=coarser).total:,.0f} MB)")
    if found:
        return f"What fits: {', or '.join(found)}"
    least = min([last.variant.resolution, *RESOLUTIONS])
    megabytes = needed(resolution=least, max_batch=1).total
    return f"Even {least} with --max-batch 1 needs {megabytes:,.0f} MB: free memory or take a larger GPU"
