"""What the sub-models for one GPU share: products with their activation in the epilogue, and attention layers that run
this project's kernels.

`Kernels` names what runs: "gpu" is this project's Triton kernels, "plain" is PyTorch everywhere
(`export/fused/plain.py`), for machines without a GPU and for tests. Nothing falls back from one to the other by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from export.fused import plain
from export.sub_models.attention import Attention, split_heads

Kernels = Literal["gpu", "plain"]


def operation(name: str, kernels: Kernels) -> Callable[..., Any]:
    """The operation in the file of that name in `export/fused/kernels/`, as the kernel or in PyTorch."""
    if kernels == "plain":
        return getattr(plain, name)
    module = importlib.import_module(f"export.fused.kernels.{name}")  # needs Triton, which only GPU builds bring
    return getattr(module, name)


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


def _activated(linear: nn.Linear, x: Tensor, gelu: bool) -> Tensor:
    out = torch._addmm_activation(linear.bias, x.reshape(-1, linear.in_features), linear.weight.t(), use_gelu=gelu)
    return out.reshape(*x.shape[:-1], linear.out_features)


class FusedMlp(nn.Module):
    """The two layers of a DETR block's MLP, with ReLU in the first product's epilogue on a GPU."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = source.fc1, source.fc2

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(_activated(self.fc1, x, False))


class FusedAttention(Attention):
    """`Attention` by the kernels; `bias` is a token bias [N,1,1,S]."""

    def __init__(self, source: nn.Module, inputs: tuple[str, ...], kernels: Kernels) -> None:
        super().__init__(source, inputs, "fused")
        self.kernels: Kernels = kernels

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        key_bias = None if bias is None else bias[:, 0, 0]  # [N,S]
        return self._run("attention", q, k, v, key_bias, None, None)

    def attend_boxes(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        edges = (t.expand(q.shape[0], -1, -1, -1).contiguous() for t in (rows, columns))  # one for all in layer 1
        return self._run("box_attention", q, k, v, *edges)

    def _run(self, name: str, q: Tensor, k: Tensor, v: Tensor, *more: Tensor | None) -> Tensor:
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        return self.output(operation(name, self.kernels)(q, k, v, *more))
