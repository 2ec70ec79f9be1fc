"""The mask head of SAM3: draws the masks of chosen queries of chosen pairs, at 4p x 4p, as logits and as packed bits.

Three exact savings: only the chosen queries are multiplied with the pixels; the 1x1 instance projection is folded into
them (a dot product with W*x+b is one with x); and a 3x3 convolution of an upsampled map plus a skip map is the sum of
two convolutions, of which the skip map's depends on the image alone.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from export.sub_models.attention import Attention, Form, token_bias
from export.sub_models.precision import group_norm_relu, layer_norm

Upsampling = Literal["plain", "subpixel"]


class MaskHead(nn.Module):
    """`fpn_0` [B,C,4p,4p], `fpn_1` [B,C,2p,2p], `memory` [N,p*p,C], `query_features` [N,Q,C], `prompt_features`
    [N,S,C], `prompt_mask` int32 [N,S], `image_index` int32 [M], `pair_index` int32 [M], `query_index` int32 [M,T] ->
    `mask_logits` [M,T,4p,4p], `mask_bits` uint8 [M,T,4p,ceil(4p/8)].

    `upsampling` is "plain" (one 3x3 convolution for each row) or "subpixel" (see `Stage`).
    """

    fp32_islands = ()

    def __init__(self, model: Sam3Model, form: Form = "explicit", upsampling: Upsampling = "plain") -> None:
        super().__init__()
        source, config = model.mask_decoder, model.config.vision_config
        self.patches: int = config.image_size // config.backbone_config.patch_size
        self.attention = Attention(source.prompt_cross_attn, ("q", "kv"), form)
        self.norm = source.prompt_cross_attn_norm
        stages = zip(source.pixel_decoder.conv_layers, source.pixel_decoder.norms, strict=True)
        self.stages = nn.ModuleList(Stage(convolution, norm, upsampling) for convolution, norm in list(stages)[:2])
        self.embedder = source.mask_embedder
        weight = source.instance_projection.weight.detach()[:, :, 0, 0].t().clone()
        self.projection = nn.Linear(1, 1, bias=False, device="meta")  # the instance projection of a query: e -> e*W
        self.projection.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("projection_bias", source.instance_projection.bias.detach()[:, None].clone())  # [C,1]
        self.bits = BitPacker(4 * self.patches)

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
        x = memory.index_select(0, pair_index)  # [M,p*p,C]
        prompt = prompt_features.index_select(0, pair_index)  # [M,S,C]
        hidden = token_bias(prompt_mask.index_select(0, pair_index))  # [M,1,1,S]
        x = x + self.attention(layer_norm(self.norm, x), prompt, bias=hidden)
        picks = self.embedder(pick(query_features, pair_index, query_index))  # [M,T,C]
        logits = self.draw(x, (fpn_1, fpn_0), image_index, picks)  # [M,T,16*p*p]
        logits = logits.unflatten(2, (4 * self.patches, 4 * self.patches))
        return logits, self.bits(logits)

    def draw(self, x: Tensor, skips: tuple[Tensor, Tensor], image_index: Tensor, picks: Tensor) -> Tensor:
        """Mask logits [M,T,16*p*p] of the embedded queries `picks` [M,T,C] on rows x [M,p*p,C]; `skips` are the feature
        pyramid's maps of twice and four times the side."""
        x = x.transpose(1, 2).unflatten(2, (self.patches, self.patches))  # [M,C,p,p]
        for stage, skip in zip(self.stages, skips, strict=True):
            x = stage(x, skip, image_index)  # [M,C,2p,2p], [M,C,4p,4p]
        return self.projection(picks) @ x.flatten(2) + picks @ self.projection_bias


def pick(queries: Tensor, pair_index: Tensor, query_index: Tensor) -> Tensor:
    """Features [M,T,C] of queries [N,Q,C]: row m takes pair `pair_index[m]` and its queries `query_index[m]`."""
    flat = pair_index[:, None] * queries.shape[1] + query_index  # [M,T]
    return queries.flatten(0, 1).index_select(0, flat.flatten()).reshape(*query_index.shape, queries.shape[2])


class Stage(nn.Module):
    """Upsample [M,C,h,h] by 2 (nearest), add the row's skip map [B,C,2h,2h], 3x3 convolution, group normalisation, ReLU
    -> [M,C,2h,2h].

    "plain" does just that. "subpixel" splits the convolution, which is linear: the skip's part runs once for each
    image; the part that acts on the upsampled map is a 4x4 transposed convolution of stride 2 on the small one (each
    output pixel meets 2x2 distinct values: 4/9 of the products).
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.GroupNorm, upsampling: Upsampling) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm
        self.upsampling = subpixel_convolution(convolution) if upsampling == "subpixel" else None

    def forward(self, x: Tensor, skip: Tensor, image_index: Tensor) -> Tensor:
        if self.upsampling is not None:
            x = self.upsampling(x) + self.convolution(skip).index_select(0, image_index)
        else:
            x = self.convolution(F.interpolate(x, scale_factor=2.0, mode="nearest") + skip.index_select(0, image_index))
        return group_norm_relu(self.norm, x)


def subpixel_convolution(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """The transposed convolution that equals `convolution` (3x3, padding 1, bias left out) of a map upsampled 2x by
    repetition.

    Repetition is itself a transposed convolution with a 2x2 kernel of ones; the two kernels convolve to one of 4x4.
    """
    weight = convolution.weight.detach()  # [O,I,3,3]
    outputs, inputs = weight.shape[:2]
    kernel = F.conv2d(weight.flip(2, 3).reshape(-1, 1, 3, 3), torch.ones(1, 1, 2, 2), padding=1)
    kernel = kernel.reshape(outputs, inputs, 4, 4).transpose(0, 1)  # [I,O,4,4]
    folded = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False, device="meta")
    folded.weight = nn.Parameter(kernel.contiguous(), requires_grad=False)
    return folded


class BitPacker(nn.Module):
    """Logits [M,T,S,S] above 0 as bits along x, most significant first, zero-padded to whole bytes: uint8
    [M,T,S,ceil(S/8)].

    A byte is a dot product of eight zeros and ones with powers of two: at most 255, exact in fp16, and an operation
    every engine has.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.padding: int = -size % 8
        self.register_buffer("powers", 2.0 ** torch.arange(7, -1, -1), persistent=False)  # [8]

    def forward(self, logits: Tensor) -> Tensor:
        ones = F.pad((logits > 0).to(self.powers.dtype), (0, self.padding))
        return (ones.unflatten(-1, (-1, 8)) @ self.powers).to(torch.uint8)
