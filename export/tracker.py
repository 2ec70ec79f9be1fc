"""Exports the tracker's four sub-models of one variant, verified, beside its other sub-models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ensemble.spec import Variant
from export.checkpoint import Source, at_size
from export.engines.engine import Tool
from export.engines.registry import ready
from export.gate.frames import Frame
from export.gate.reference import reference_device
from export.gate.tracker.history import histories
from export.gate.tracker.reference import TrackerTruth, tracker_truths
from export.gate.tracker.verify import verify_tracker
from export.gate.verify import GateReport
from export.manifest import recipe
from export.repository import VERSION, Written, is_current
from export.staging import Facts, Job, Progress, admit, built_all, opened, staged_build
from export.sub_models.precision import torch_precision
from export.sub_models.tracker.parts import TRACKER_PARTS, make_tracker_part


def export_tracker(job: Job, progress: Progress = lambda step: None) -> list[Written]:
    """Writes the tracker's parts of the job's variant into the repository and returns what is there now.

    As `export_variant` does: what is current is kept; if any has to be built, all four pass the gate together before
    anything is moved in, or where this machine cannot run them, wait for the gate of the one that serves them. It comes
    before `export_variant`, which writes the configurations: a front model never names a tracker that is not there.
    Raises EngineError and GateError.
    """
    source, variant, root = job.source, job.variant, job.root
    assert source.tracker is not None, "whoever exports a tracker has loaded it"
    tool = ready(job.engine, job.tensorrt, variant.precision)
    names = {part: getattr(variant, part).name for part in TRACKER_PARTS}
    recipes = {part: recipe(source, variant, part, tool) for part in TRACKER_PARTS}
    kept = {part for part in TRACKER_PARTS if not job.force and is_current(root / names[part], recipes[part])}
    if len(kept) < len(TRACKER_PARTS):
        job.staged.parent.mkdir(parents=True, exist_ok=True)
        sized = source.tracker.at_size(variant.resolution)

        def build(part: str) -> Facts:
            progress(f"{names[part]}: building {tool.engine.spec.artifact}")
            precision = torch_precision(variant)
            made = make_tracker_part(part, sized.model, sized.neck, tool.engine.style, precision)
            return staged_build(job, tool, getattr(variant, part), recipes[part], lambda: (made, {}))

        missing = [part for part in TRACKER_PARTS if part not in kept]
        built = dict(zip(missing, built_all(build, missing, tool.engine.side_by_side), strict=True))
        folders = {part: (root if part in kept else job.staged) / names[part] / VERSION for part in TRACKER_PARTS}
        gate = measured(job, {part: (tool, folder) for part, folder in folders.items()}, progress)
        admit(job, tool, built, recipes, gate)
        for part in missing:
            shutil.rmtree(job.staged / names[part])
        if not any(job.staged.iterdir()):  # an interrupted export of the other sub-models may have left something
            job.staged.rmdir()
    return [Written.at(root / names[part], part in kept) for part in TRACKER_PARTS]


def measured(job: Job, artifacts: Mapping[str, tuple[Tool, Path]], progress: Progress) -> GateReport | None:
    """How near the tracker's artifacts, by part what runs each and its folder, come to transformers' tracker; None
    where this machine runs none of them. Raises GateError where an answer has another shape than its record says."""
    variant = job.variant
    if not any(tool.open for tool, _ in artifacts.values()):
        return None
    progress(f"r{variant.resolution}: running transformers' tracker on {len(job.frames)} frames")
    truths = truths_of(job.source, variant, job.frames)
    progress(f"r{variant.resolution}: measuring the tracker's artifacts against it")
    with opened(artifacts) as runs:
        return verify_tracker(runs, variant, truths)


def truths_of(source: Source, variant: Variant, frames: Sequence[Frame]) -> list[TrackerTruth]:
    """What transformers' tracker answers on what the checkpoint's image transformer makes of the frames."""
    assert source.tracker is not None, "whoever exports a tracker has loaded it"
    frames = frames[: variant.max_batch]
    pixels = torch.from_numpy(np.stack([frame.pixels for frame in frames]))
    sized, device = at_size(source.model, variant.resolution, variant.queries), reference_device()
    try:
        sized.to(device)  # type: ignore[arg-type]  # transformers' annotation knows no strings
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            seen = sized.vision_encoder.backbone(pixels.to(device).float() / 127.5 - 1.0).last_hidden_state
    finally:
        sized.to("cpu")  # type: ignore[arg-type]
    tracker = source.tracker.at_size(variant.resolution)
    return tracker_truths(tracker, seen.numpy(force=True), histories(variant, len(frames)), device)
