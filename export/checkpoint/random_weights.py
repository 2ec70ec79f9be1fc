"""Random weights in SAM3's architecture, for load tests without the gated weights and for tests."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, Sam3Config, Sam3TrackerVideoConfig, Sam3VisionConfig
from transformers.initialization import no_init_weights

from export.checkpoint.configuration import model_class
from export.checkpoint.source import Source
from export.checkpoint.tokenizer import fixed_length
from export.checkpoint.tracker import LoadedTracker, empty_tracker
from export.sub_models import pooled_keys

RANDOM = "random"
"""Name of the real-size configuration with random weights, for load tests without the gated weights."""
PRESENT = 2.0
"""Bias of a random tracker's score, whose spread is about 1."""


def random_source(config: PreTrainedConfig | None = None, seed: int = 0, video: bool = False) -> Source:
    """Random weights for `config` (by default the real-size one: 840 million parameters, 3200 MB), and the small
    checkpoint's tokenizer; for `video` a real-size tracker too.

    Weights are drawn so that signals neither vanish nor explode; transformers' own initialisation is meant to be
    overwritten.
    """
    from export.tiny.tokenizer import build_tokenizer

    config = config or Sam3Config()
    torch.manual_seed(seed)
    with no_init_weights():
        model = model_class(config)._from_config(config)
    _draw_all(model)
    tracker = _random_tracker(model.config.vision_config) if video else None
    tokenizer = fixed_length(build_tokenizer(), model.config.text_config.max_position_embeddings)
    return Source(RANDOM, pooled_keys.apply(model).eval(), tokenizer, tracker=tracker)


def _random_tracker(vision: Sam3VisionConfig) -> LoadedTracker:
    """One that believes in most objects that it is asked for: of those that are not there it would draw nothing."""
    tracker = empty_tracker(Sam3TrackerVideoConfig(), vision)
    for module in (tracker.model, tracker.neck):
        _draw_all(module)
    tracker.model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(PRESENT)
    return tracker


def _draw_all(model: nn.Module) -> None:
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            _draw(module, name, weight.data)


def _draw(module: nn.Module, name: str, weight: torch.Tensor) -> None:
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
        weight.fill_(1.0 if name == "weight" else 0.0)
    elif name == "bias":
        weight.normal_(0, 0.1)
    elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        inputs = weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else weight[0].numel()
        weight.normal_(0, inputs**-0.5)
    else:
        weight.normal_(0, 1.0 if weight.shape[-1] == 4 else 0.5)  # embeddings; reference points spread over the frame
