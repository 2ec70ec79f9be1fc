"""The mask head for one GPU without TensorRT: computes what `MaskHead` does, each large map written once and read once.

Maps are channels-last. One kernel computes a stage's convolution, the sum with the skip map and the sums for its group
normalisation; the last normalisation happens while the pixels are multiplied with the queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from export.fused.layers import FusedAttention, Kernels, operation
from export.sub_models.mask_head import BitPacker, MaskHead


class FusedMaskHead(MaskHead):
    """Inputs and outputs of `MaskHead`."""

    def __init__(self, model: Sam3Model, kernels: Kernels) -> None:
        super().__init__(model, "fused", "plain")
        self.kernels: Kernels = kernels
        self.attention = FusedAttention(model.mask_decoder.prompt_cross_attn, ("q", "kv"), kernels)
        self.stages = nn.ModuleList(FusedStage(stage.convolution, stage.norm, kernels) for stage in self.stages)
        self.bits = FusedBitPacker(4 * self.patches)

    def draw(self, x: Tensor, skips: tuple[Tensor, Tensor], image_index: Tensor, picks: Tensor) -> Tensor:
        first, second = self.stages
        x = x.unflatten(1, (self.patches, self.patches))  # [M,p,p,C]
        x, scale, shift = first(x, skips[0], image_index)  # [M,2p,2p,C]
        x = F.relu(x.float() * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
        x, scale, shift = second(x, skips[1], image_index)  # [M,4p,4p,C]
        offset = (picks @ self.projection_bias)[:, :, 0]  # [M,T]
        multiply = operation("mask_product", self.kernels)
        return multiply(x.flatten(1, 2), scale, shift, self.projection(picks), offset)


class FusedStage(nn.Module):
    """Upsample [M,h,h,C] by 2, add the row's skip map [B,C,2h,2h], 3x3 convolution -> [M,2h,2h,C] before its group
    normalisation, and what that normalisation multiplies with and adds, fp32 [M,C].
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.GroupNorm, kernels: Kernels) -> None:
        super().__init__()
        self.norm = norm
        self.kernels: Kernels = kernels
        weight = convolution.weight.detach()
        self.skip_weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.skip_bias = convolution.bias
        self.folded = nn.Parameter(fold_upsampling(weight), requires_grad=False)  # [4,4C,C]

    def forward(self, x: Tensor, skip: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skip = skip.contiguous(memory_format=torch.channels_last)
        skip = F.conv2d(skip, self.skip_weight, self.skip_bias, padding=1)  # [B,C,2h,2h]
        skip = skip.permute(0, 2, 3, 1).contiguous()  # [B,2h,2h,C]
        x, sums = operation("upsample", self.kernels)(x.contiguous(), self.folded, skip, image_index)
        return x, *normalisation(self.norm, sums, x.shape[1] * x.shape[2])


def fold_upsampling(weight: Tensor) -> Tensor:
    """Weights [O,I,3,3] of a convolution with padding 1 -> [4,4*I,O]: for each kind of output pixel (upper left, upper
    right, lower left, lower right of its coarse pixel) and each of the 2x2 coarse pixels that it meets, the sum of the
    weights that fall on it.
    """
    # Even rows meet coarse rows y-1 (tap 0) and y (taps 1, 2); odd rows meet y (taps 0, 1) and y+1 (tap 2).
    share = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [odd, coarse, tap]
    folded = torch.einsum("pyk,qxl,oikl->pqyxio", share, share, weight)
    return folded.reshape(4, -1, weight.shape[0]).contiguous()


def normalisation(norm: nn.GroupNorm, sums: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Scale and shift fp32 [M,C] of a group normalisation, from sums [M,tiles,2,C] over tiles of values and of their
    squares."""
    moments = sums.sum(1, dtype=torch.float64).unflatten(2, (norm.num_groups, -1)).mean(3) / pixels  # [M,2,groups]
    mean, variance = moments[:, 0], moments[:, 1] - moments[:, 0].square()
    repeats = norm.num_channels // norm.num_groups
    inverse = (variance + norm.eps).rsqrt().float().repeat_interleave(repeats, 1)  # [M,C]
    scale = inverse * norm.weight
    return scale, norm.bias - mean.float().repeat_interleave(repeats, 1) * scale


class FusedBitPacker(BitPacker):
    """`BitPacker` with a sum in place of a product, of which the compiler makes a single pass over the logits."""

    def forward(self, logits: Tensor) -> Tensor:
        ones = F.pad((logits > 0).float(), (0, self.padding)).unflatten(-1, (-1, 8))
        return (ones * self.powers.float()).sum(-1).to(torch.uint8)
