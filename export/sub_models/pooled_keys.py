"""Pooled keys: the DETR encoder's image self-attention with keys and values averaged over 2 x 2 patches, in all layers
but the first.

A quarter of the keys is a quarter of the attention. The first layer runs once an image and stays as it is. It is a
property of a checkpoint: `detr_encoder_config.pooled_keys` is 2 in its config.json, which transformers reads, keeps and
writes, but does not act upon; `apply` makes a model of transformers compute it. The weights are the same in number and
shape.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, Sam3Model

FIELD = "pooled_keys"
FACTOR = 2
"""Patches a side of what one key stands for."""


def pools(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint's configuration asks for pooled keys."""
    return getattr(config.detr_encoder_config, FIELD, None) == FACTOR


def fault(config: PreTrainedConfig) -> str | None:
    """What is wrong with a configuration's value, which would otherwise do nothing."""
    value = getattr(config.detr_encoder_config, FIELD, None)
    if value in (None, 1, FACTOR):
        return None
    return f"detr_encoder_config.{FIELD} is {value!r}, expected {FACTOR} (2 x 2 patches a key) or no such entry"


def pool(tokens: Tensor, side: int) -> Tensor:
    """Tokens of a map, [N, side*side, C], averaged over 2 x 2 patches: [N, ceil(side/2)**2, C].

    Where `side` is odd, the last row and column of cells average the patches that there are: to repeat the last patches
    gives the same mean without a case of its own.
    """
    x = tokens.unflatten(1, (side, side))
    if side % FACTOR:
        x = torch.cat([x, x[:, -1:]], 1)
        x = torch.cat([x, x[:, :, -1:]], 2)
    cells = -(-side // FACTOR)
    x = x.unflatten(2, (cells, FACTOR)).unflatten(1, (cells, FACTOR))  # [N,cells,2,cells,2,C]
    return x.mean((2, 4)).flatten(1, 2)


def apply(model: Sam3Model) -> Sam3Model:
    """Makes `model`, in place, compute what its configuration says of pooled keys; the same model again is fine.
    Returns it."""
    wanted = pools(model.config)
    for index, layer in enumerate(model.detr_encoder.layers):
        _set(layer.self_attn, wanted and index > 0)
    return model


def _set(attention: nn.Module, wanted: bool) -> None:
    hooks = attention._forward_pre_hooks
    placed = [key for key, hook in hooks.items() if hook is _pooled_arguments]
    if wanted and not placed:
        attention.register_forward_pre_hook(_pooled_arguments, with_kwargs=True)
    for key in placed if not wanted else ():
        del hooks[key], attention._forward_pre_hooks_with_kwargs[key]


def _pooled_arguments(attention: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    side = math.isqrt(named["key"].shape[1])
    return arguments, named | {name: pool(named[name], side) for name in ("key", "value")}
