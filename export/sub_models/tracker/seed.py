"""The tracker's seed: N objects whose masks are given, by a detector or by hand -> their pointers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from export.sub_models.attention import Form
from export.sub_models.tracker.arithmetic import BitUnpacker, channel_norm, resizing, to_tokens
from export.sub_models.tracker.mask_decoder import MaskDecoder

SCALE, SHIFT = 20.0, -10.0
"""Of the logits of a given mask: 10 inside, -10 outside (transformers' `_use_mask_as_output`)."""


class TrackerSeed(nn.Module):
    """`track_0` [B,C/8,4p,4p], `track_1` [B,C/4,2p,2p], `track_2` [B,C,p,p], `image_index` int32 [N], `mask_bits` uint8
    [N,4p,ceil(4p/8)] -> `pointer` [N,C], `mask_logits` [N,4p,4p].

    `mask_logits` are what the memory encoder takes: the mask as it was given. For the decoder transformers stretches it
    to the frame's resolution and reduces it again, by products with constant matrices here.
    """

    fp32_islands = ("decoder.iou_head", "decoder.score_head")

    def __init__(self, model: Sam3TrackerVideoModel, neck: Sam3VisionNeck, form: Form = "explicit") -> None:
        super().__init__()
        self.decoder = MaskDecoder(model, form)
        prompts, size = model.prompt_encoder, 4 * self.decoder.patches
        resolution = prompts.input_image_size
        self.unpack = BitUnpacker(size)
        self.downsample, self.embed = model.mask_downsample, prompts.mask_embed
        self.register_buffer("up", resizing(size, resolution), persistent=False)  # [R,4p]
        coarse = (resolution - self.downsample.kernel_size[0]) // self.downsample.stride[0] + 1
        self.register_buffer("to_prompt", resizing(coarse, size), persistent=False)  # [4p,about R/4]

    def forward(
        self, track_0: Tensor, track_1: Tensor, track_2: Tensor, image_index: Tensor, mask_bits: Tensor
    ) -> tuple[Tensor, Tensor]:
        masks = self.unpack(mask_bits)  # [N,4p,4p]
        stretched = (self.up @ masks @ self.up.t()).unsqueeze(1)  # [N,1,R,R]
        prompt = self.to_prompt @ self.downsample(stretched) @ self.to_prompt.t()  # [N,1,4p,4p]
        x = to_tokens(track_2).index_select(0, image_index) + to_tokens(self.embedded(prompt))
        found = self.decoder(x, track_0.index_select(0, image_index), track_1.index_select(0, image_index))
        there = masks.flatten(1).amax(1, keepdim=True) > 0
        return torch.where(there, found.pointer, self.decoder.no_object), masks * SCALE + SHIFT

    def embedded(self, prompt: Tensor) -> Tensor:
        """The mask prompt [N,1,4p,4p] as features [N,C,p,p]."""
        embed = self.embed
        x = embed.activation(channel_norm(embed.layer_norm1, embed.conv1(prompt)))
        x = embed.activation(channel_norm(embed.layer_norm2, embed.conv2(x)))
        return embed.conv3(x)
