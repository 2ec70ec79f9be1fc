"""fp32 islands: what must stay in fp32 when a sub-model computes in fp16, and the one function that makes the fp16 copy.

Statistics of normalisations are taken in fp32 and their weights stay fp32. A wrapper names its further islands in `fp32_islands`. Constants were computed
in fp32 before they are cast here.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRECISIONS = ("fp32", "fp16")
"""What the torch modules can be made in; int8 and fp8 are made from them by an engine."""


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` with fp32 statistics and weights; the result has the dtype of `x`."""
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def group_norm_relu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """ReLU of `norm` with fp32 statistics and weights; the result has the dtype of `x` [N,C,H,W]."""
    return F.relu(F.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)).to(x.dtype)


def in_precision(module: nn.Module, precision: str) -> nn.Module:
    """`module` itself for "fp32"; for "fp16" a copy whose weights are fp16 outside the islands. Raises ValueError on anything else.

    The copy leaves the checkpoint's own submodules, which the wrapper shares, as they are.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision of a torch module must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp32":
        return module
    module = copy.deepcopy(module)
    islands: tuple[str, ...] = tuple(getattr(module, "fp32_islands", ()))
    for path, part in module.named_modules():
        if isinstance(part, nn.LayerNorm | nn.GroupNorm) or _inside(path, islands):
            continue
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if tensor.is_floating_point() and not _inside(f"{path}.{name}".lstrip("."), islands):
                tensor.data = tensor.data.to(torch.float16)
    return module


def _inside(path: str, islands: tuple[str, ...]) -> bool:
    return any(path == island or path.startswith(f"{island}.") for island in islands)
