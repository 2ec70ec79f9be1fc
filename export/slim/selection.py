"""Which channels of the vision transformer stay where it becomes narrower: those with the largest weights.

Every axis of every weight belongs to a set of channels: the stream that all blocks read and add to, the heads of one
block, the hidden layer of one block's MLP, the inner channels of one level of the pyramid. A set is selected once, by
the squared weights that write and read each channel, so that all weights of it fit together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = r"vision_encoder\.backbone\.layers\.(\d+)\."
LEVEL = r"vision_encoder\.neck\.fpn_layers\.(\d+)\."
AXES: tuple[tuple[str, dict[int, str]], ...] = (
    (r"vision_encoder\.backbone\.embeddings\.patch_embeddings\.projection\.(weight|bias)", {0: "stream"}),
    (r"vision_encoder\.backbone\.embeddings\.position_embeddings", {2: "stream"}),
    (r"vision_encoder\.backbone\.layer_norm\.(weight|bias)", {0: "stream"}),
    (BLOCK + r"layer_norm[12]\.(weight|bias)", {0: "stream"}),
    (BLOCK + r"attention\.[qkv]_proj\.weight", {0: "heads {}", 1: "stream"}),
    (BLOCK + r"attention\.[qkv]_proj\.bias", {0: "heads {}"}),
    (BLOCK + r"attention\.o_proj\.weight", {0: "stream", 1: "heads {}"}),
    (BLOCK + r"(?:attention\.o_proj|mlp\.fc2)\.bias", {0: "stream"}),
    (BLOCK + r"mlp\.fc1\.weight", {0: "mlp {}", 1: "stream"}),
    (BLOCK + r"mlp\.fc1\.bias", {0: "mlp {}"}),
    (BLOCK + r"mlp\.fc2\.weight", {0: "stream", 1: "mlp {}"}),
    (LEVEL + r"scale_layers\.0\.weight", {0: "stream", 1: "half {}"}),
    (LEVEL + r"scale_layers\.0\.bias", {0: "half {}"}),
    (LEVEL + r"scale_layers\.2\.weight", {0: "half {}", 1: "quarter {}"}),
    (LEVEL + r"scale_layers\.2\.bias", {0: "quarter {}"}),
)
"""The set of channels of each axis, by the names of weights; {} is the number of block or level. Transposed
convolutions have their inputs first."""
LEVEL_INPUT = {"0": "quarter {}", "1": "half {}"}
"""What a level's first projection reads, after its transposed convolutions; the others read the stream."""


def axes_of(name: str) -> dict[int, str]:
    """The set of channels that each axis of a weight belongs to, for axes that become narrower."""
    for pattern, axes in AXES:
        found = re.fullmatch(pattern, name)
        if found:
            return {axis: label.format(*found.groups()[:1]) for axis, label in axes.items()}
    found = re.fullmatch(LEVEL + r"proj1\.weight", name)
    return {1: LEVEL_INPUT.get(found[1], "stream").format(found[1])} if found else {}


def narrowed(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: int) -> dict[str, Tensor]:
    """The weights with the channels of `wanted`'s shapes, all others whole; `head` channels of a head go together.
    Raises ValueError where a weight has another shape for another reason."""
    sizes = {
        label: (tensor.shape[axis], wanted[name].shape[axis])
        for name, tensor in weights.items()
        for axis, label in axes_of(name).items()
    }
    chosen = {
        label: _chosen(importance, sizes[label][1], head if label.startswith("heads") else 1)
        for label, importance in _importance(weights).items()
        if sizes[label][0] != sizes[label][1]
    }
    result = {}
    for name, tensor in weights.items():
        for axis, label in axes_of(name).items():
            if label in chosen:
                tensor = tensor.index_select(axis, chosen[label])
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name}: cannot become {list(wanted[name].shape)} from {list(weights[name].shape)}")
        result[name] = tensor.clone(memory_format=torch.contiguous_format)
    return result


def _importance(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For every set, the share that each channel has of the squared weights of all matrices that write or read it."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if tensor.ndim < 2:
            continue
        squares = tensor.float().square()
        for axis, label in axes_of(name).items():
            share = squares.sum([a for a in range(tensor.ndim) if a != axis])
            found[label] = found.get(label, torch.zeros_like(share)) + share / share.sum().clamp(1e-12)
    return found


def _chosen(importance: Tensor, count: int, together: int) -> Tensor:
    """Numbers of `count` channels in ascending order, `together` of them as one."""
    groups = importance.unflatten(0, (-1, together)).sum(1)
    best = groups.topk(count // together).indices.sort().values
    return (best[:, None] * together + torch.arange(together)).flatten()
