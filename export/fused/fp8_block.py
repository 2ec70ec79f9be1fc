"""A layer of the image transformer whose linear layers compute in E4M3, with one scale for each tensor.

Weights are scaled by their largest entry, activations by a largest entry that was seen beforehand (`Maxima`), so
nothing is measured while the layer runs. Every E4M3 tensor is written by what computes it: the normalisations,
attention and the first layer of the MLP. Attention computes in 16 bits, and the stream from layer to layer has 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.fused.layers import operation
from export.fused.plain import eight_bits, turn
from export.fused.vision_encoder import FusedBlock
from export.sub_models.attention import split_heads

LARGEST = 448.0
"""Of E4M3 (Micikevicius et al., FP8 formats for deep learning, 2022)."""
ALIGNED = 16
"""Rows of an E4M3 matrix start at multiples of so many bytes."""
REPEATS = 8
"""How often a layer's two scales are written down. A package computes constants of up to eight numbers anew in every
call, and it compiles a kernel for each value of a number that is no tensor."""


@dataclass(frozen=True, slots=True)
class Maxima:
    """The largest absolute value that each linear layer of a block was given."""

    qkv: float
    output: float
    fc1: float
    fc2: float


class Fp8Linear(nn.Module):
    """A linear layer whose input is E4M3 times `maximum` / 448; what it computes is multiplied with 448 / `result`
    where that becomes E4M3 too.

    Raises ValueError where a row of weights has not a multiple of 16 channels.
    """

    def __init__(self, linear: nn.Linear, maximum: float, result: float = LARGEST) -> None:
        super().__init__()
        if linear.in_features % ALIGNED:
            raise ValueError(
                f"fp8 needs linear layers of a multiple of {ALIGNED} channels, this checkpoint has one of"
                f" {linear.in_features}; use --precision fp16"
            )
        weight = linear.weight.detach().float()
        largest = max(float(weight.abs().max()), 1e-12)
        self.register_buffer("weight", eight_bits(weight * (LARGEST / largest)))  # E4M3 [O,I]
        self.register_buffer("bias", linear.bias.detach())  # [O]
        scales = weight.new_tensor([maximum / LARGEST * largest / LARGEST, LARGEST / result])
        self.register_buffer("scales", scales.repeat(REPEATS))


class Fp8Norm(nn.Module):
    """Layer normalisation [...,C] -> E4M3 times `maximum` / 448."""

    def __init__(self, norm: nn.LayerNorm, maximum: float) -> None:
        super().__init__()
        self.eps: float = norm.eps
        for name in ("weight", "bias"):
            self.register_buffer(name, getattr(norm, name).detach().float() * (LARGEST / maximum))


class Fp8Block(nn.Module):
    """Inputs and outputs of the `FusedBlock` that it is made from."""

    def __init__(self, block: FusedBlock, maxima: Maxima) -> None:
        super().__init__()
        self.window, self.kernels, self.ragged, self.tokens = block.window, block.kernels, block.ragged, block.tokens
        self.heads, self.head_dim = block.heads, block.head_dim
        if self.ragged:
            self.longest: int = block.longest
            self.register_buffer("windows", block.windows, persistent=False)
        qkv = Fp8Linear(block.qkv, maxima.qkv)
        if not self.ragged:  # the product turns queries and keys where both members of a pair are side by side
            rows = beside_each_other(self.heads, self.head_dim)
            qkv.weight, qkv.bias = qkv.weight[rows].contiguous(), qkv.bias[rows]
        self.qkv = qkv
        self.output = Fp8Linear(block.output, maxima.output)
        self.fc1, self.fc2 = Fp8Linear(block.fc1, maxima.fc1, maxima.fc2), Fp8Linear(block.fc2, maxima.fc2)
        self.norm1, self.norm2 = Fp8Norm(block.norm1, maxima.qkv), Fp8Norm(block.norm2, maxima.fc1)
        self.register_buffer("inverse", self.qkv.scales.new_full((2 * REPEATS,), LARGEST / maxima.output))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows = x.flatten(0, 1)  # E4M3 tensors have two dimensions from the beginning, see `fp8_linear`
        attended = self.attention(self.norm(self.norm1, rows), x.shape[1], cos, sin)
        rows = self.linear(self.output, attended, residual=rows)
        hidden = self.linear(self.fc1, self.norm(self.norm2, rows), gelu=True)
        return self.linear(self.fc2, hidden, residual=rows).reshape(x.shape)

    def attention(self, x: Tensor, tokens: int, cos: Tensor, sin: Tensor) -> Tensor:
        """E4M3 [B*p*p,C] -> E4M3 [B*p*p,C]; `tokens` is p*p."""
        turns = (None, None) if self.ragged else (cos, sin)
        qkv = self.linear(self.qkv, x, turns=turns).reshape(-1, self.tokens, 3 * x.shape[1])
        q, k, v = (split_heads(t, self.heads) for t in qkv.chunk(3, -1))  # [*,heads,tokens,d]
        if not self.ragged:
            return operation("attention", self.kernels)(q, k, v, None, None, None, self.inverse)
        _, key, value = self.qkv.bias.reshape(3, self.heads, self.head_dim)
        k = turn(k, cos[:tokens], sin[:tokens])
        attend = operation("window_attention", self.kernels)
        out = attend(q, k, v, key, value, cos, sin, self.windows, self.longest)
        return eight_bits(out.flatten(0, 1).float() * self.inverse[0])

    def norm(self, norm: Fp8Norm, x: Tensor) -> Tensor:
        return operation("fp8_norm", self.kernels)(x, norm.weight, norm.bias, norm.eps)

    def linear(
        self,
        layer: Fp8Linear,
        x: Tensor,
        gelu: bool = False,
        residual: Tensor | None = None,
        turns: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Tensor:
        product = operation("fp8_linear", self.kernels)
        return product(x, layer.weight, layer.bias, layer.scales, gelu, residual, *turns)


def beside_each_other(heads: int, head_dim: int) -> Tensor:
    """Order [3*heads*head_dim] of a projection's rows that takes queries' and keys' heads from half-split order to
    pairs side by side."""
    pairs = torch.arange(head_dim).reshape(2, -1).T.flatten()
    width = heads * head_dim
    turned = (torch.arange(2 * heads)[:, None] * head_dim + pairs).flatten()
    return torch.cat([turned, 2 * width + torch.arange(width)])
