"""Lighter architectures: fewer and narrower layers, with weights chosen from the whole model's.

Blocks that attend to the whole image stay, and others go evenly; layers behind the trunk stay evenly spread. Channels
are chosen by `selection.py`. What comes out is a beginning for a training (`recover.py`), not a model to use.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, Sam3Model
from transformers.initialization import no_init_weights

from export.checkpoint.configuration import misfits
from export.slim.blocks import renumbered, without_blocks
from export.slim.selection import narrowed
from export.sub_models import pooled_keys

ENCODER, DECODER = "detr_encoder.layers.", "detr_decoder.layers."


@dataclass(frozen=True)
class Architecture:
    """What is to be smaller; None stays (the MLP's hidden width follows `width`, and so do the heads).

    `width`, `depth`, `heads`, `mlp`: channels, blocks, heads and hidden channels of the vision transformer;
    `encoder_layers`, `decoder_layers`: of the DETR encoder and decoder.
    """

    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp: int | None = None
    encoder_layers: int | None = None
    decoder_layers: int | None = None


def planned(config: PreTrainedConfig, wanted: Architecture) -> PreTrainedConfig:
    """The configuration of the shrunk model, all blocks of its trunk still there. Raises ValueError, with every number
    that does not fit."""
    trunk = config.vision_config.backbone_config
    width = wanted.width or trunk.hidden_size
    heads = wanted.heads or max(1, width // head_width(config))
    faults = [*_beyond(config, wanted), *_apart(config, wanted, width, heads)]
    config = copy.deepcopy(config)
    small = config.vision_config.backbone_config
    small.hidden_size, small.num_attention_heads = width, heads
    small.intermediate_size = wanted.mlp or -(-trunk.intermediate_size * width // trunk.hidden_size // 8) * 8
    for part, count in (("detr_encoder_config", wanted.encoder_layers), ("detr_decoder_config", wanted.decoder_layers)):
        getattr(config, part).num_layers = count or getattr(config, part).num_layers
    faults = faults or misfits(config)
    if faults:
        raise ValueError(f"these numbers do not fit together: {'; '.join(faults)}")
    return config


def head_width(config: PreTrainedConfig) -> int:
    """Channels of a head of the vision transformer."""
    trunk = config.vision_config.backbone_config
    return trunk.hidden_size // trunk.num_attention_heads


def _beyond(config: PreTrainedConfig, wanted: Architecture) -> list[str]:
    """Numbers that are larger than the checkpoint's, or none."""
    trunk = config.vision_config.backbone_config
    most = {
        "width": trunk.hidden_size,
        "depth": trunk.num_hidden_layers,
        "heads": trunk.num_attention_heads,
        "mlp": trunk.intermediate_size,
        "encoder_layers": config.detr_encoder_config.num_layers,
        "decoder_layers": config.detr_decoder_config.num_layers,
    }
    given = {name: getattr(wanted, name) for name in most if getattr(wanted, name) is not None}
    if not given:
        return [f"expected something to shrink, one of {', '.join(most)}"]
    return [
        f"{name} is {value}, expected 1 to the checkpoint's {most[name]}"
        for name, value in given.items()
        if not 1 <= value <= most[name]
    ]


def _apart(config: PreTrainedConfig, wanted: Architecture, width: int, heads: int) -> list[str]:
    """Numbers that contradict each other."""
    head, whole = head_width(config), len(config.vision_config.backbone_config.global_attn_indexes)
    faults = []
    if width != heads * head:
        near = max(1, round(width / head))
        faults.append(
            f"width {width} with {heads} heads is {width / heads:.4g} channels a head, expected {head}, which rotary"
            f" positions depend on: {near} heads are {near * head} wide"
        )
    if width % 4:
        faults.append(f"width {width} is no multiple of 4, by which the pyramid's finest level divides it")
    if wanted.depth is not None and wanted.depth <= whole:
        faults.append(
            f"depth {wanted.depth} leaves no windowed block beside {whole} that attend to the whole image, expected at"
            f" least {whole + 1}; sam3-slim drop-blocks leaves out any"
        )
    return faults


def shrink(model: Sam3Model, wanted: Architecture) -> Sam3Model:
    """A new model of the `wanted` architecture, its weights taken from `model`'s. Raises ValueError where its numbers
    do not fit together."""
    config = planned(model.config, wanted)
    weights = dict(model.state_dict())
    for prefix, part in ((ENCODER, "detr_encoder_config"), (DECODER, "detr_decoder_config")):
        before, after = (getattr(c, part).num_layers for c in (model.config, config))
        weights = renumbered(weights, spread(before, after), prefix)
    with no_init_weights():  # the weights are assigned in the next lines
        result = type(model)._from_config(config, dtype=torch.float32)
    result.load_state_dict(narrowed(weights, result.state_dict(), head_width(model.config)), assign=True)
    result = pooled_keys.apply(result).eval()
    trunk = model.config.vision_config.backbone_config
    gone = dispensable(trunk.num_hidden_layers, trunk.global_attn_indexes, wanted.depth or trunk.num_hidden_layers)
    return without_blocks(result, gone) if gone else result


def dispensable(blocks: int, whole: Sequence[int], depth: int) -> list[int]:
    """Which blocks go so that `depth` stay: windowed ones (not in `whole`), evenly, but neither the first nor the last
    of them while there are others."""
    windowed = [block for block in range(blocks) if block not in set(whole)]
    inner = windowed[1:-1] if blocks - depth <= len(windowed) - 2 else windowed
    count = blocks - depth
    return [inner[(2 * n + 1) * len(inner) // (2 * count)] for n in range(count)]


def spread(before: int, after: int) -> list[int]:
    """Which of `before` layers stay: the first, the last, and those evenly between them; the first alone for one."""
    if after == 1:
        return [0]
    return [round(n * (before - 1) / (after - 1)) for n in range(after)]
