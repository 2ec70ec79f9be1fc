"""Slims a checkpoint: reads it, writes fewer or smaller weights to a folder of its own, reads that folder again and
compares both before it takes its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.checkpoint import CheckpointError, Source
from export.checkpoint.folder import TEXT_ENCODER, Found
from export.checkpoint.loading import read_model
from export.gate.frames import Frame
from export.slim import folder as layout
from export.slim.compare import compared
from export.slim.half import DTYPES, halve


class SlimError(RuntimeError):
    """The slimmed weights do not find what the whole ones find; nothing was written."""


@dataclass(frozen=True)
class Job:
    """One slimmed checkpoint: `source` goes to the folder `target`.

    `dtype` None strips: weights keep the dtype that they have, and the model is the same bit for bit. "fp16" or "bf16"
    halves, and the gate compares both on `frames` of `resolution` pixels a side. With `apart` the text encoder goes to
    a folder of its own beside `target`.
    """

    source: Source
    target: Path
    dtype: str | None = None
    apart: bool = False
    frames: Sequence[Frame] = ()
    resolution: int = 0


def slim(job: Job, progress: Callable[[str], None] = lambda step: None) -> dict[str, Any]:
    """Does the job and returns its report. Raises ValueError where the target is taken, SlimError where the result
    differs; in both cases nothing is written."""
    layout.check_target(job.target, job.source.folder)
    exact = dict(job.source.model.state_dict())
    progress(f"rounding {len(exact)} weights" if job.dtype else f"taking {len(exact)} weights")
    weights, said = _weights(job, exact)
    with ExitStack() as stack:
        staged = stack.enter_context(layout.staged(job.target))
        text = staged / TEXT_ENCODER
        progress(f"writing {job.target}")
        layout.write_description(staged, job.source, DTYPES[job.dtype] if job.dtype else _usual_dtype(weights))
        files = [staged / layout.WEIGHTS]
        if job.apart:
            weights, apart = layout.parted(weights)
            layout.write_weights(text, apart)
            files.append(text)
        layout.write_weights(files[0], weights)
        report = {"of": job.source.name, **said, **_sizes(job.source, files[0], text if job.apart else None)}
        progress("reading it again, and comparing")
        report["same"] = _compare(job, staged, tuple(files), exact)
        if job.apart:
            other = stack.enter_context(layout.staged(layout.text_folder(job.target)))
            text.rename(other / TEXT_ENCODER)
        layout.write_report(staged, report)
    return report


def _weights(job: Job, exact: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if job.dtype:
        halved, said = halve(exact, job.dtype)
        return halved, {"half": said.as_dict()}
    stored = job.source.account.stored if job.source.account else {}
    back = {name: stored.get(name, tensor.dtype) for name, tensor in exact.items()}
    return {name: tensor.to(min(back[name], tensor.dtype, key=_size)) for name, tensor in exact.items()}, {}


def _compare(job: Job, staged: Path, files: tuple[Path, ...], exact: dict[str, Tensor]) -> dict[str, Any]:
    """How the written folder was found to be the same. Raises SlimError where it is not."""
    try:
        slimmed, _ = read_model(staged, Found(files))
    except CheckpointError as error:
        raise SlimError(f"what was written cannot be read: {error}") from error
    if job.dtype is None:
        found = slimmed.state_dict()
        other = [name for name, tensor in exact.items() if not torch.equal(tensor, found[name])]
        if other:
            raise SlimError(f"{len(other)} weights changed on their way, {other[0]} first; nothing was written")
        return {"weights": "bit for bit"}
    gate = compared(job.source, slimmed, job.frames, job.resolution, "fp16")
    if gate.failures:
        other_dtype = next(name for name in DTYPES if name != job.dtype)
        raise SlimError(
            f"{job.dtype} does not find what fp32 finds: {'; '.join(gate.failures)}; nothing was written; try --dtype"
            f" {other_dtype}, or keep fp32 with sam3-slim strip"
        )
    return {
        "resolution": job.resolution,
        "frames": len(job.frames),
        "cosine": min(check.cosine for check in gate.outputs),
        "detections": asdict(gate.detections),
    }


def _sizes(source: Source, weights: Path, text: Path | None) -> dict[str, Any]:
    whole = sum(tensor.numel() * tensor.element_size() for tensor in source.model.state_dict().values())
    sizes = {
        "bytes_before": sum(path.stat().st_size for path in source.files) or whole,  # random weights are in no file
        "bytes_after": weights.stat().st_size,
    }
    return sizes | ({"bytes_text_encoder": text.stat().st_size} if text else {})


def _usual_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    """The dtype of most values."""
    counts: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def _size(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()
