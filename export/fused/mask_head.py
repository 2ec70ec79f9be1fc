"""The mask head written for one GPU without TensorRT: the same inputs and outputs as `mask_head`, each large map
written once and read once.

Maps are channels-last. A stage's convolution, the sum with the skip map and the sums for its group normalisation are
one kernel; the last normalisation happens while the pixels are multiplied with the queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from export.fused.layers import FusedAttention, Kernels
from export.sub_models.attention import token_bias
from export.sub_models.mask_head import MaskHead, pick
from export.sub_models.precision import layer_norm


class FusedMaskHead(MaskHead):
    """Inputs and outputs of `MaskHead`."""

    def __init__(self, model: Sam3Model, kernels: Kernels) -> None:
        super().__init__(model, "fused", "plain")
        source = model.mask_decoder
        self.kernels: Kernels = kernels
        self.attention = FusedAttention(source.prompt_cross_attn, ("q", "kv"), kernels)
        stages = list(zip(source.pixel_decoder.conv_layers, source.pixel_decoder.norms, strict=True))[:2]
        self.stages = nn.ModuleList(FusedStage(convolution, norm, kernels) for convolution, norm in stages)

    def forward(
        self,
        fpn_0: Tensor,
        fpn_1: Tensor,
        memory: Tensor,
        query_features: Tensor,
        prompt_features: Tensor,
        prompt_mask: Tensor,
        image_index: Tensor,
        pair_index: Tensor,
        query_index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        p = self.patches
        x, prompt = (
            memory.index_select(0, pair_index),
            prompt_features.index_select(0, pair_index),
        )  # [M,p*p,C], [M,S,C]
        x = x + self.attention(
            layer_norm(self.norm, x), prompt, bias=token_bias(prompt_mask.index_select(0, pair_index))
        )
        first, second = self.stages
        x, scale, shift = first(x.unflatten(1, (p, p)), fpn_1, image_index)  # [M,2p,2p,C]
        x = F.relu(x.float() * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
        x, scale, shift = second(x, fpn_0, image_index)  # [M,4p,4p,C]
        picks = self.embedder(pick(query_features, pair_index, query_index))  # [M,T,C]
        offset = (picks @ self.projection_bias)[:, :, 0]  # [M,T]
        logits = self.product(x.flatten(1, 2), scale, shift, self.projection(picks), offset)  # [M,T,16*p*p]
        logits = logits.unflatten(2, (4 * p, 4 * p))
        return logits, pack_bits(logits, self.bits.powers)

    def product(self, x: Tensor, scale: Tensor, shift: Tensor, queries: Tensor, offset: Tensor) -> Tensor:
        """Queries [M,T,C] times the normalised map [M,P,C]: [M,T,P]."""
        if self.kernels == "gpu":
            from export.fused.kernels.mask_product import mask_product

            return mask_product(x, scale, shift, queries, offset)
        normed = F.relu(x.float() * scale[:, None] + shift[:, None]).to(x.dtype)
        return queries @ normed.transpose(1, 2) + offset[:, :, None]


class FusedStage(nn.Module):
    """Upsample [M,h,h,C] by 2, add the row's skip map [B,C,2h,2h], 3x3 convolution -> [M,2h,2h,C] before its group
    normalisation, and what that normalisation multiplies and adds, fp32 [M,C].
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.GroupNorm, kernels: Kernels) -> None:
        super().__init__()
        from export.fused.kernels.upsample import fold_upsampling

        self.norm, self.kernels = norm, kernels
        weight = convolution.weight.detach()
        self.skip_weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.skip_bias = convolution.bias
        self.folded = nn.Parameter(fold_upsampling(weight), requires_grad=False)  # [4,4C,C]

    def forward(self, x: Tensor, skip: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from export.fused.kernels.upsample import plain_upsample, upsample

        skip = skip.contiguous(memory_format=torch.channels_last)
        skip = (
            F.conv2d(skip, self.skip_weight, self.skip_bias, padding=1).permute(0, 2, 3, 1).contiguous()
        )  # [B,2h,2h,C]
        run = upsample if self.kernels == "gpu" else plain_upsample
        x, sums = run(x.contiguous(), self.folded, skip, image_index)
        return x, *normalisation(self.norm, sums, x.shape[1] * x.shape[2])


def normalisation(norm: nn.GroupNorm, sums: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Scale and shift fp32 [M,C] of a group normalisation, from sums [M,tiles,2,C] over tiles of values and of their
    squares."""
    moments = sums.sum(1, dtype=torch.float64).unflatten(2, (norm.num_groups, -1)).mean(3) / pixels  # [M,2,groups]
    mean, variance = moments[:, 0], moments[:, 1] - moments[:, 0].square()
    repeats = norm.num_channels // norm.num_groups
    inverse = (variance + norm.eps).rsqrt().float().repeat_interleave(repeats, 1)  # [M,C]
    scale = inverse * norm.weight
    return scale, norm.bias - mean.float().repeat_interleave(repeats, 1) * scale


def pack_bits(logits: Tensor, powers: Tensor) -> Tensor:
    """Logits [M,T,S,S] above 0 as bits along x, most significant first, zero-padded to whole bytes: uint8
    [M,T,S,ceil(S/8)].

    `powers` [8] are 128 to 1. A sum, not `BitPacker`'s product, so that the compiler makes one pass of it.
    """
    ones = F.pad((logits > 0).float(), (0, -logits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (ones * powers.float()).sum(-1).to(torch.uint8)
