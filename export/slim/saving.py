"""Writes a model that was changed as a checkpoint folder, with a record of what was done to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Sam3Model

from export.checkpoint import Source
from export.checkpoint.folder import Found
from export.checkpoint.loading import read_model
from export.slim import folder as layout
from export.slim.slimming import SlimError


def write_model(
    source: Source,
    model: Sam3Model,
    target: Path,
    record: Mapping[str, Any],
    measure: Callable[[Sam3Model], Mapping[str, Any]] = lambda model: {},
) -> dict[str, Any]:
    """Writes `model`, made of `source`, with the source's tokenizer and processor, in the dtype that the source's
    weights were stored in, reads it again and measures that. Returns the record with sizes and what was measured, as
    it is in slim.json.

    Raises ValueError where the target is taken, SlimError where what was written is not what was meant; in both cases
    nothing is left.
    """
    layout.check_target(target, source.folder)
    stored = source.account.stored if source.account else {}
    halves = [dtype for dtype in stored.values() if dtype.itemsize == 2]
    dtype = halves[0] if len(halves) > len(stored) / 2 else torch.float32
    weights = {name: tensor.detach().cpu().to(dtype) for name, tensor in model.state_dict().items()}
    beyond = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if beyond:
        raise SlimError(
            f"{len(beyond)} weights are no finite numbers in {dtype}, {beyond[0]} first; nothing was written"
        )
    with layout.staged(target) as staged:
        layout.write_description(staged, replace(source, model=model), dtype)
        layout.write_weights(staged / layout.WEIGHTS, weights)
        again, _ = read_model(staged, Found((staged / layout.WEIGHTS,)))
        found = again.state_dict()
        other = [name for name, tensor in weights.items() if not torch.equal(tensor.float(), found[name])]
        if other or found.keys() != weights.keys():
            raise SlimError(f"{len(other)} weights changed on their way; nothing was written")
        report = {"of": source.name, **record, **sizes(source, staged / layout.WEIGHTS), **measure(again)}
        layout.write_report(staged, report)
    return report


def sizes(source: Source, weights: Path) -> dict[str, int]:
    """Bytes of the source's weights and of the written ones."""
    whole = sum(tensor.numel() * tensor.element_size() for tensor in source.model.state_dict().values())
    return {
        "bytes_before": sum(path.stat().st_size for path in source.files) or whole,
        "bytes_after": weights.stat().st_size,
    }
