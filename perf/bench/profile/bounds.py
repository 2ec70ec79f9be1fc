"""The least time that each stage could take on this machine: its arithmetic at the speed of a plain product of
matrices, or its weights and tensors at the speed of a copy, whichever takes longer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ensemble.server.architecture import Architecture
from ensemble.server.memory import MB
from ensemble.server.repository import Served
from ensemble.spec import Variant
from perf.capacity.model import decoder_flops, mask_head_flops, text_flops, vision_flops

MODEL_STAGES = ("vision", "text", "decoder", "masks")
WIDTHS = {"FP32": 4, "FP16": 2, "INT32": 4, "UINT8": 1}


def operations(variant: Variant, a: Architecture, frames: int, classes: int) -> dict[str, float]:
    """GFLOP of a round by stage; masks counted as if every pair had some."""
    pairs, r, q = frames * classes, variant.resolution, variant.queries
    flops = {"vision": frames * vision_flops(r, a, pad_linears=False), "decoder": pairs * decoder_flops(r, a, q)}
    flops |= {"masks": pairs * mask_head_flops(r, a, q), "text": classes * text_flops(a)}
    return {stage: value / 1e9 for stage, value in flops.items()}


def traffic(served: Served, frames: int, classes: int) -> dict[str, float]:
    """Least bytes that a stage's memory must move in a round: its weights once, its inputs and outputs once."""
    variant, pairs = served.variant, frames * classes
    sizes = {"images": frames, "pairs": pairs, "prompts": classes, "rows": pairs}
    moved = {}
    models = (variant.vision_encoder, variant.text_encoder, variant.decoder, variant.mask_head)
    for stage, model in zip(MODEL_STAGES, models, strict=True):
        tensors = [t for t in (*model.inputs, *model.outputs) if t.name != "mask_logits"]
        values = sum(math.prod(t.shape(**sizes)) * WIDTHS[t.dtype] for t in tensors)
        weights = next(a.path.stat().st_size for a in served.artifacts if a.model == model.name)
        moved[stage] = float(weights + values)
    return moved


def bounds(
    stages: Mapping[str, float], gflop: Mapping[str, float], moved: Mapping[str, float], ceilings: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A record per stage: milliseconds, the least that its arithmetic (`gflop`) and its memory (`moved`, bytes) would
    take at this machine's `ceilings` (GFLOP/s, and GB/s of 1e9 bytes), which of them binds, and its share."""
    rows = []
    for stage, ms in stages.items():
        row: dict[str, Any] = {"stage": stage, "ms": round(ms, 3)}
        if stage in gflop:
            arithmetic, memory = gflop[stage] / ceilings["gflop_s"], moved[stage] / 1e9 / ceilings["copy_gb_s"]
            least = {"arithmetic": 1e3 * arithmetic, "memory": 1e3 * memory}
            bound = max(least, key=lambda kind: least[kind])
            row |= {"gflop": round(gflop[stage], 1), "mb": round(moved[stage] / MB, 1), "bound": bound}
            row |= {f"{kind}_ms": round(value, 3) for kind, value in least.items()}
            row["of_bound"] = round(least[bound] / ms, 3) if ms else 0.0
        rows.append(row)
    return rows
