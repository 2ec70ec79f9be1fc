"""The memory encoder: what N objects look like in their frames, as memory maps for later steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from export.sub_models.attention import Form
from export.sub_models.tracker.arithmetic import BitUnpacker, channel_norm, enlarging, to_tokens

TAKEN = -10.0
"""Highest logit of a pixel that another object has (transformers' `_apply_non_overlapping_constraints`)."""


class MemoryEncoder(nn.Module):
    """`track_2` [B,C,p,p], `image_index` int32 [N], `mask_logits` [N,4p,4p], `keep` uint8 [N,4p,ceil(4p/8)], `hard`
    int32 [N], `there` int32 [N] -> `memory` [N,p*p,64].

    transformers enlarges masks to the frame's resolution and then to 16p, and only there cuts them or takes their
    sigmoid: both steps are one product with a constant matrix from either side. The frame's own part is computed once a
    frame, and each block's last scale is part of its weights.
    """

    fp32_islands = ()

    def __init__(self, model: Sam3TrackerVideoModel, neck: Sam3VisionNeck, form: Form = "explicit") -> None:
        super().__init__()
        source, config = model.memory_encoder, model.config
        self.scale, self.shift = config.sigmoid_scale_for_mem_enc, config.sigmoid_bias_for_mem_enc
        size: int = model.prompt_encoder.mask_input_size[0]
        self.unpack = BitUnpacker(size)
        self.register_buffer("enlarge", enlarging(size, model.prompt_encoder.input_image_size), persistent=False)
        self.projection, self.downsampler = source.feature_projection, source.mask_downsampler
        self.blocks = nn.ModuleList(Block(layer) for layer in source.memory_fuser.layers)
        self.output = source.projection
        self.register_buffer("absent", model.occlusion_spatial_embedding_parameter.detach()[None].clone())  # [1,1,64]

    def forward(
        self, track_2: Tensor, image_index: Tensor, mask_logits: Tensor, keep: Tensor, hard: Tensor, there: Tensor
    ) -> Tensor:
        logits = torch.where(self.unpack(keep) > 0, mask_logits, mask_logits.clamp(max=TAKEN))
        x = (self.enlarge @ logits @ self.enlarge.t()).unsqueeze(1)
        given = (hard > 0)[:, None, None, None]
        x = torch.where(given, (x > 0).to(x.dtype), x.sigmoid()) * self.scale + self.shift  # [N,1,16p,16p]
        for layer in self.downsampler.layers:
            x = layer.activation(channel_norm(layer.layer_norm, layer.conv(x)))
        x = self.downsampler.final_conv(x) + self.projection(track_2).index_select(0, image_index)  # [N,C,p,p]
        for block in self.blocks:
            x = block(x)
        gone = (there <= 0).to(x.dtype)[:, None, None]
        return to_tokens(self.output(x)) + gone * self.absent


class Block(nn.Module):
    """ConvNeXt: [N,C,p,p] -> [N,C,p,p]"""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.depthwise, self.norm, self.activation = layer.depthwise_conv, layer.layer_norm, layer.activation
        self.first, last, scale = layer.pointwise_conv1, layer.pointwise_conv2, layer.scale.detach()
        self.second = nn.Linear(last.in_features, last.out_features, device="meta")
        self.second.weight = nn.Parameter(scale[:, None] * last.weight.detach(), requires_grad=False)
        self.second.bias = nn.Parameter(scale * last.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = channel_norm(self.norm, self.depthwise(x)).permute(0, 2, 3, 1)
        return x + self.second(self.activation(self.first(inner))).permute(0, 3, 1, 2)
