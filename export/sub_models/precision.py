"""The precision of a sub-model: which parts of it stay in fp32 when it computes in fp16, and how the fp16 copy is made.

Statistics of normalisations are taken in fp32 and their weights stay in fp32. A sub-model names what else has to in
`fp32_islands`. Constants are computed in fp32 before they are cast here.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensemble.spec import Variant

PRECISIONS = ("fp32", "fp16")
"""What the torch modules can be made in; int8 and fp8 are made from them by an engine."""


def torch_precision(variant: Variant) -> str:
    """Precision of a variant's torch modules: engines quantise fp8 and a GPU's int8 from fp16, and int8 that processors
    compute from fp32."""
    return "fp32" if variant.precision in ("fp32", "int8") else "fp16"


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` with fp32 statistics and weights; the result has the dtype of `x`."""
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def group_norm_relu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """ReLU of `norm` with fp32 statistics and weights; the result has the dtype of `x` [N,C,H,W]."""
    return F.relu(norm(x.float())).to(x.dtype)


class SpelledGroupNorm(nn.GroupNorm):
    """Group normalisation as sums and products. PyTorch's own is exported as an InstanceNormalization, for which
    TensorRT may call cuDNN."""

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__(source.num_groups, source.num_channels, source.eps, device="meta")
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]"""
        grouped = x.unflatten(1, (self.num_groups, -1))  # [N,groups,C/groups,H,W]
        share = 1.0 / (grouped.shape[2] * grouped.shape[3] * grouped.shape[4])
        centred = grouped - _total(grouped) * share
        normed = centred * torch.rsqrt(_total(centred * centred) * share + self.eps)
        return normed.flatten(1, 2) * self.weight[:, None, None] + self.bias[:, None, None]


def _total(x: Tensor) -> Tensor:
    """Sum over all but the first two dimensions, which stay; along rows first, so that no fp32 sum has millions of
    terms."""
    return x.sum(-1, keepdim=True).sum((2, 3), keepdim=True)


def spell_group_norms(module: nn.Module) -> None:
    """Replaces every group normalisation of a sub-model by a `SpelledGroupNorm`; the checkpoint's own modules stay as
    they are."""
    for child in module.modules():
        for name, norm in child.named_children():
            if isinstance(norm, nn.GroupNorm):
                setattr(child, name, SpelledGroupNorm(norm))


def in_precision(module: nn.Module, precision: str) -> nn.Module:
    """`module` itself for "fp32"; for "fp16" a copy whose weights are fp16 outside the islands. Raises ValueError on
    anything else.

    The checkpoint's own modules, which the sub-model shares, stay as they are.
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
