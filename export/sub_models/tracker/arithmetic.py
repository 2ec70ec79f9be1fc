"""Small exact pieces of the tracker's sub-models: normalised channels, packed masks, and resizing as a product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.sub_models.precision import layer_norm


def channel_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` over the channels of a map [N,C,H,W]; the result has the dtype of `x`."""
    return layer_norm(norm, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def to_map(x: Tensor, side: int) -> Tensor:
    """Tokens [N,side*side,C] -> map [N,C,side,side]"""
    return x.transpose(1, 2).unflatten(2, (side, side))


def to_tokens(x: Tensor) -> Tensor:
    """Map [N,C,H,W] -> tokens [N,H*W,C]"""
    return x.flatten(2).transpose(1, 2)


def resizing(source: int, target: int) -> Tensor:
    """The matrix [target, source] that resizes one axis, fp32: a map M becomes A @ M @ A^T.

    The same as PyTorch's bilinear interpolation with antialiasing, which is linear and acts on each axis alone;
    products are an operation that every engine has, antialiasing is not.
    """
    columns = torch.eye(source)[None, None]
    return F.interpolate(columns, (target, source), mode="bilinear", align_corners=False, antialias=True)[0, 0]


def enlarging(size: int, resolution: int) -> Tensor:
    """The matrix [4*size, size] that carries masks to the memory encoder's size, fp32: as transformers' tracker does
    it, by way of the frame's resolution."""
    return resizing(resolution, 4 * size) @ resizing(size, resolution)


class BitUnpacker(nn.Module):
    """Packed rows uint8 [N,S,ceil(S/8)], most significant bit first -> zeros and ones [N,S,S] in the module's dtype.

    Bit k of a byte b is floor(b/2^k) - 2*floor(b/2^(k+1)), exact in fp16 too, and operations that every engine has.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("scales", 0.5 ** torch.arange(7, -1, -1), persistent=False)  # [8]

    def forward(self, packed: Tensor) -> Tensor:
        shifted = packed.to(self.scales.dtype).unsqueeze(-1) * self.scales  # [N,S,bytes,8]
        bits = shifted.floor() - 2 * (shifted * 0.5).floor()
        return bits.flatten(2)[..., : self.size]
