"""Position encodings of a checkpoint that depend on the resolution alone: constants of the sub-models, computed once.

They are the tiled absolute positions and the RoPE tables of the image transformer, the sine positions of the feature
map, and the frequencies of a box's sine code. In half precision they would be inaccurate, so they are computed in fp32
and cast at the very end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def tiled_positions(table: Tensor, patches: int) -> Tensor:
    """Absolute positions [1,s*s,C] of the pretraining grid, repeated (not interpolated) over `patches` a side ->
    [1,p,p,C]."""
    side = math.isqrt(table.shape[1])
    rows = torch.arange(patches) % side
    return table.detach().reshape(1, side, side, -1)[:, rows][:, :, rows]


def halves_order(width: int) -> Tensor:
    """Permutation [width] from rotary pairs (0,1),(2,3),... to all first members, then all second members, so that
    rotating swaps halves."""
    return torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])


def rope_tables(rotary: nn.Module, grid: int, window: int) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [grid*grid, head_dim] in half-split order.

    `rotary` is a layer's own Sam3ViTRotaryEmbedding; `grid` is tokens a side of the attended square; positions are
    scaled so that every square spans `window` units (axial RoPE of SAM3). Rotation is then x*cos + swap_halves(x)*sin:
    the minus sign of the first half sits in the table.
    """
    step = torch.arange(grid) * (window / grid)
    ids = torch.stack([step.repeat(grid), step.repeat_interleave(grid)], -1)  # [grid*grid, 2]: column, row
    cos, sin = (t[0].float() for t in rotary(torch.zeros(1), ids))  # [grid*grid, head_dim], pairs interleaved
    order = halves_order(cos.shape[-1])
    sign = torch.ones_like(cos)
    sign[:, : cos.shape[-1] // 2] = -1
    return cos[:, order].clone(), (sin[:, order] * sign).clone()


def sine_map(encoding: nn.Module, width: int, patches: int) -> Tensor:
    """Sine positions [1, p*p, width] of the p x p feature map, by the checkpoint's own Sam3SinePositionEmbedding, in
    fp32."""
    shape = torch.Size((1, width, patches, patches))
    positions = encoding(shape, torch.device("cpu"), torch.float32)  # [1,C,p,p]
    return positions.flatten(2).transpose(1, 2).contiguous()


class BoxSine(nn.Module):
    """Sine code of numbers in 0..1 (DAB-DETR, eq. 4, with temperature 10000): [...] -> [..., features], sine and cosine
    in turn, fp32.

    A cosine is a sine a quarter turn ahead, so the whole code is one product, one sum and one sine.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        index = torch.arange(features)
        exponent = 2 * (index // 2) / features
        self.register_buffer("frequency", 2 * math.pi / 10000.0**exponent, persistent=False)
        self.register_buffer("phase", (index % 2) * (math.pi / 2), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return torch.sin(values.unsqueeze(-1) * self.frequency + self.phase)
