"""What the modules for one GPU share: a product with its activation in the epilogue, attention by name, and attention
layers that call it.

`Kernels` names what runs: "gpu" is this project's Triton kernels, "plain" is PyTorch everywhere, for machines without a
GPU and as the yardstick of the tests. Nothing falls from one to the other by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.sub_models.attention import Attention, split_heads

Kernels = Literal["gpu", "plain"]


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A Linear with these weights [O,I] and this bias [O]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (nn.Parameter(t.detach().clone(), requires_grad=False) for t in (weight, bias))
    return linear


def gelu_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """GELU of `linear`, on a GPU in the product's epilogue.

    The epilogue's GELU is the tanh form (Hendrycks and Gimpel 2016), at most 5e-4 from the exact one; over the 32
    layers of real-size SAM3 with random weights that changed the pyramid by 2e-4 of its norm, less than fp16 itself
    does.
    """
    return _activated(linear, x, True)


def relu_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """ReLU of `linear`, on a GPU in the product's epilogue."""
    return _activated(linear, x, False)


def _activated(linear: nn.Linear, x: Tensor, gelu: bool) -> Tensor:
    out = torch._addmm_activation(linear.bias, x.reshape(-1, linear.in_features), linear.weight.t(), use_gelu=gelu)
    return out.reshape(*x.shape[:-1], linear.out_features)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernels: Kernels,
    key_bias: Tensor | None = None,
    turned_by: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`kernels.attention.attention`, or the same in PyTorch; shapes there. `turned_by` are the cosine and sine that
    turn the queries."""
    cos, sin = turned_by or (None, None)
    if kernels == "gpu":
        from export.fused.kernels.attention import attention  # Triton is there only beside a GPU build of PyTorch

        return attention(q, k, v, key_bias, cos, sin)
    if cos is not None and sin is not None:
        q = turn(q, cos, sin)
    bias = None if key_bias is None else key_bias[:, None, None, :].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias, scale=1.0).transpose(1, 2).flatten(2)


def attend_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: tuple[Tensor, Tensor],
    turned_by: tuple[Tensor, Tensor],
    windows: Tensor,
    runs: Sequence[tuple[int, int, int, int]],
    kernels: Kernels,
) -> Tensor:
    """`kernels.window_attention.window_attention`, or the same in PyTorch; shapes there. `runs` are the numbers of
    `windows`, `bias` those of keys and values."""
    longest = max(count for _, count, _, _ in runs)
    if kernels == "gpu":
        from export.fused.kernels.window_attention import window_attention

        return window_attention(q, k, v, *bias, *turned_by, windows, longest)
    tokens, (cos, sin), (key, value) = q.shape[2], turned_by, bias
    q = turn(q, cos[:tokens], sin[:tokens])
    padding = turn(key[:, None].expand(-1, cos.shape[0] - tokens, -1), cos[tokens:], sin[tokens:])  # [heads,P,d]
    found = []
    for first, count, padded, pads in runs:
        own, beside = slice(first, first + count), slice(padded, padded + pads)
        keys = torch.cat([k[:, :, own], padding[None, :, beside].expand(k.shape[0], -1, -1, -1)], 2)
        values = torch.cat([v[:, :, own], value[None, :, None].expand(v.shape[0], -1, pads, -1)], 2)
        found.append(F.scaled_dot_product_attention(q[:, :, own], keys, values, scale=1.0))
    return torch.cat(found, 2).transpose(1, 2).flatten(2)


def attend_boxes(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, rows: Tensor, columns: Tensor) -> Tensor:
    """`kernels.box_attention.box_attention`, or the same in PyTorch; shapes there."""
    if kernels == "gpu":
        from export.fused.kernels.box_attention import box_attention

        return box_attention(q, k, v, rows, columns)
    bias = F.pad((rows.unsqueeze(4) + columns.unsqueeze(3)).flatten(3), (0, 0, 1, 0))
    return F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), scale=1.0).transpose(1, 2).flatten(2)


def in_planes(x: Tensor, kernels: Kernels) -> Tensor:
    """x [N,C,H,W] in any memory format -> the same, in C order."""
    if kernels == "gpu":
        from export.fused.kernels.planes import planes

        return planes(x)
    return x.contiguous()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [...,n,d], with cos and sin [n,d/2]: channel i and i + d/2 are a pair."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class FusedAttention(Attention):
    """`Attention` through `attend`; `bias` is a token bias [N,1,1,S]."""

    def __init__(self, source: nn.Module, inputs: tuple[str, ...], kernels: Kernels) -> None:
        super().__init__(source, inputs, "fused")
        self.kernels: Kernels = kernels

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        key_bias = None if bias is None else bias[:, 0, 0]  # [N,S]
        return self.output(attend(q, k, v, self.kernels, key_bias))

    def attend_boxes(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """As `attend` with a box bias, `rows` and `columns` [N,heads,n-1,p]."""
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        return self.output(attend_boxes(q, k, v, self.kernels, rows, columns))
