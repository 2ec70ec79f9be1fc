"""A random tracker beside the small checkpoint's detector, saved and loaded as a video model's folder, each once a
session."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ensemble.records import ModelSpec
from ensemble.spec import Variant
from export import checkpoint
from export.checkpoint.tracker import LoadedTracker
from export.gate.tracker.history import histories
from export.gate.tracker.reference import Arrays, TrackerTruth, tracker_truths
from export.gate.verify import Run
from export.sub_models.attention import Form
from export.sub_models.parts import Style
from export.sub_models.tracker.parts import TRACKER_PARTS, make_tracker_part
from export.tiny.video.configuration import CHECKPOINT, random_video_model

SPREAD, MIDDLE = 5.0, 1.15
"""A fresh tracker's scores are all near zero: with these factors and this bias some objects are in their frames at 140
and some are not."""
SHARPER = 3.0
"""Fresh attention to the memory is almost even, so that it would hardly matter what a map's age is."""


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random video model as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("checkpoints") / "video"
    model = random_video_model(resolution=252)
    with torch.no_grad():
        head = model.tracker_model.mask_decoder.pred_obj_score_head.proj_out
        head.weight *= SPREAD
        head.bias.fill_(MIDDLE)
        for layer in model.tracker_model.memory_attention.layers:
            layer.cross_attn_image.q_proj.weight *= SHARPER
    model.save_pretrained(path)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, path)
    return path


@pytest.fixture(scope="session")
def video(video_folder: Path) -> checkpoint.Source:
    return checkpoint.load(str(video_folder), video=True)


@pytest.fixture(scope="session")
def tracker(video: checkpoint.Source) -> LoadedTracker:
    assert video.tracker is not None
    return video.tracker


@pytest.fixture(scope="session")
def variant(video: checkpoint.Source, tracker: LoadedTracker) -> Callable[..., Variant]:
    """(resolution, precision) -> the variant."""
    sizes = {"checkpoint": video.record, "tracker": tracker.record}
    return lambda resolution, precision="fp32": Variant(resolution, 50, precision, **sizes)


@dataclass(frozen=True)
class Case:
    """The tracker at a resolution, and what transformers says of three histories on two frames of noise."""

    tracker: LoadedTracker
    truths: list[TrackerTruth]


@pytest.fixture(scope="session")
def case(tracker: LoadedTracker, variant: Callable[..., Variant]) -> Callable[[int], Case]:
    """Resolution -> a case in which most objects are in their frames."""

    @cache
    def make(resolution: int) -> Case:
        sized = tracker.at_size(resolution)
        tokens = (2, (resolution // 14) ** 2, tracker.record.trunk_size)
        hidden = np.random.default_rng(resolution).standard_normal(tokens, np.float32)
        known = histories(variant(resolution), images=2)
        scores = [t.outputs["tracker_step"]["track_score"] for t in tracker_truths(sized, hidden, known)]
        sized = LoadedTracker(copy.deepcopy(sized.model), sized.neck)  # its weights are those of all resolutions
        sized.model.mask_decoder.pred_obj_score_head.proj_out.bias -= float(np.quantile(np.concatenate(scores), 0.3))
        return Case(sized, tracker_truths(sized, hidden, known))

    return make


@pytest.fixture(scope="session")
def runs() -> Callable[..., dict[str, Run]]:
    """(tracker at a resolution, its variant, form of attention) -> the four parts as torch modules, as functions."""

    def make(sized: LoadedTracker, of: Variant, form: Form = "explicit") -> dict[str, Run]:
        precision = "fp32" if of.precision == "fp32" else "fp16"
        style = Style(form, "plain")
        modules = {p: make_tracker_part(p, sized.model, sized.neck, style, precision) for p in TRACKER_PARTS}
        return {part: run_of(module, getattr(of, part)) for part, module in modules.items()}

    return make


def run_of(module: nn.Module, model: ModelSpec) -> Run:
    """A module as a function from arrays by name to arrays by name."""

    def run(feed: Arrays) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = module(*(torch.from_numpy(array) for array in feed.values()))
        found = found if isinstance(found, tuple) else (found,)
        return {tensor.name: value.numpy() for tensor, value in zip(model.outputs, found, strict=True)}

    return run
