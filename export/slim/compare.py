"""Compares slimmed weights with those that they were made of, by the gate: outputs of every sub-model and detections,
both in fp32, so that the weights alone make the difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Sam3Model

from ensemble.gate.limits import LIMITS
from ensemble.spec import Variant
from export.checkpoint import RANDOM, Source, at_size
from export.gate.frames import Frame, gate_samples
from export.gate.reference import Arrays, all_expected_outputs, reference_device
from export.gate.verify import GateReport, Run, verify
from export.sub_models.parts import PARTS, Style, make_part


def compared(source: Source, slimmed: Sam3Model, frames: Sequence[Frame], resolution: int, limits: str) -> GateReport:
    """How near `slimmed` comes to the model of `source` on the frames (of `resolution` pixels a side), by the gate's
    `limits` of that precision."""
    queries = source.record.num_queries
    variant = Variant(resolution, queries, "fp32", checkpoint=source.record)
    samples = gate_samples(frames, source.tokenizer, variant)
    truths = all_expected_outputs(at_size(source.model, resolution, queries), samples, reference_device())
    sized = at_size(slimmed, resolution, queries)
    runs = {part: as_run(sized, variant, part) for part in PARTS}
    return verify(runs, variant, samples, truths, detects=source.name != RANDOM, limits=LIMITS[limits])


def as_run(model: Sam3Model, variant: Variant, part: str) -> Run:
    """One sub-model of `model` in fp32 PyTorch, as the gate calls it."""
    module = make_part(part, model, Style("chunked", "plain"), "fp32")
    record = getattr(variant, part)

    @torch.no_grad()
    def run(feed: Arrays) -> dict[str, np.ndarray]:
        found = module(*(torch.from_numpy(feed[tensor.name]) for tensor in record.inputs))
        outputs = (found,) if isinstance(found, torch.Tensor) else found
        return {tensor.name: output.numpy() for tensor, output in zip(record.outputs, outputs, strict=True)}

    return run
