"""Reads the tracker of a video model's checkpoint: every one of its weights accounted for, as the detector's are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import Sam3VideoConfig

from export.checkpoint.account import Account, balanced
from export.checkpoint.configuration import CONFIG, sub_configurations
from export.checkpoint.error import CheckpointError
from export.checkpoint.files import read_weights
from export.checkpoint.folder import Found, read_json
from export.checkpoint.layouts import TRACKER, Weight
from export.checkpoint.tracker import MODEL, NECK, LoadedTracker, empty_tracker, misfits
from export.checkpoint.training import bare, choose

VIDEO = "sam3_video"


def read_tracker(folder: Path, found: Found, ema: bool) -> tuple[LoadedTracker, Account]:
    """The tracker in fp32 that the files `found` in a folder hold, and the account of its weights. Raises
    CheckpointError where the folder holds no video model, or not all of its tracker."""
    config = read_video_configuration(folder)
    faults = misfits(config.tracker_config, config.detector_config.vision_config)
    if faults:
        raise CheckpointError(f"{folder / CONFIG}: {'; '.join(faults)}; use the file saved in training")
    for part in (config, *sub_configurations(config)):
        part.dtype = torch.float32  # what was saved in half would have its tables of positions made in half, too
    try:
        tracker = empty_tracker(config.tracker_config, config.detector_config.vision_config)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, AttributeError, IndexError, KeyError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{folder}: no tracker can be made of its config.json ({said})") from error
    named: dict[str, Tensor] = {}
    for path in found.weights:
        named |= choose(read_weights(path), ema, str(path))[0]
    weights = [Weight(_once(bare(name)), tensor, name) for name, tensor in named.items()]
    own = [weight for weight in weights if weight.name.startswith((MODEL, NECK))]
    if not own:
        raise CheckpointError(
            f"{folder}: expected the weights of a tracker ({MODEL}..., {NECK}...) for --video, found none among"
            f" {len(weights)}; pass a video model's checkpoint, or leave --video out"
        )
    state, account = balanced(tracker.state(), own, {}, (), str(folder))
    for module, prefix in ((tracker.model, MODEL), (tracker.neck, NECK)):
        parts = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        module.load_state_dict(parts, assign=True)
    return tracker, account


def _once(name: str) -> str:
    """The name with the tracker's prefix once: `save_pretrained` of transformers 5.17 writes it twice."""
    return name.removeprefix(MODEL) if name.startswith(MODEL + MODEL) else name


def read_video_configuration(folder: Path) -> Sam3VideoConfig:
    """The configuration of a video model in a folder. Raises CheckpointError where there is none."""
    path = folder / CONFIG
    data = read_json(path) if path.is_file() else {}
    if data.get("model_type") != VIDEO:
        shown = f"one of type {data.get('model_type')!r}" if data else "none"
        raise CheckpointError(
            f"{path}: expected the configuration of a video model (type {VIDEO!r}) for --video, found {shown}; pass the"
            " folder of a video model in transformers' format, or leave --video out"
        )
    try:
        return Sam3VideoConfig.from_dict(data)
    except (TypeError, ValueError, AttributeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: transformers cannot read it ({' '.join(str(error).split())})") from error


def together(detector: Account, tracker: Account) -> Account:
    """One account of both; the tracker's weights, which the detector does not use, are used."""
    return replace(
        detector,
        used=detector.used + tracker.used,
        dtypes=dict(Counter(detector.dtypes) + Counter(tracker.dtypes)),
        unused={reason: count for reason, count in detector.unused.items() if reason != TRACKER},
        absent=dict(Counter(detector.absent) + Counter(tracker.absent)),
        stored={**detector.stored, **tracker.stored},
    )
