"""The tracker's step: where N objects are in their frames, by what each remembers of earlier ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from ensemble.tracker_interfaces import MEMORY_WIDTH
from export.sub_models.attention import MASKED, Form
from export.sub_models.mask_head import BitPacker
from export.sub_models.positions import rope_tables, sine_map
from export.sub_models.precision import layer_norm
from export.sub_models.tracker.mask_decoder import MaskDecoder
from export.sub_models.tracker.memory_attention import FeedForward, MemoryAttention, SelfAttention

TEMPERATURE = 10000
"""Of the sine code of pointers' ages (transformers' `get_1d_sine_pe`)."""


class TrackerStep(nn.Module):
    """`track_0` [B,C/8,4p,4p], `track_1` [B,C/4,2p,2p], `track_x` [B,p*p,C], `image_index` int32 [N], `memory`
    [N,M,p*p,64], `memory_age` int32 [N,M], `pointers` [N,P,C], `pointer_age` fp32 [N,P] -> `mask_logits` [N,4p,4p],
    `mask_bits` uint8 [N,4p,ceil(4p/8)], `track_score` fp32 [N], `track_iou` fp32 [N], `pointer` [N,C].

    Ages are as in `ensemble/tracker_interfaces.py`. What of the first layer depends on the frame alone is computed once
    a frame: its self-attention in the neck, its queries here.
    """

    fp32_islands = ("ages", "decoder.iou_head", "decoder.score_head")

    def __init__(self, model: Sam3TrackerVideoModel, neck: Sam3VisionNeck, form: Form = "explicit") -> None:
        super().__init__()
        self.decoder = MaskDecoder(model, form)
        patches = self.decoder.patches
        layers = model.memory_attention.layers
        self.self_attentions = nn.ModuleList(SelfAttention(layer, form) for layer in layers[1:])
        self.memory_attentions = nn.ModuleList(MemoryAttention(layer, form) for layer in layers)
        self.feed_forwards = nn.ModuleList(FeedForward(layer) for layer in layers)
        self.norm = model.memory_attention.layer_norm
        cos, sin = rope_tables(model.memory_attention.rotary_emb, patches, patches)
        self.register_buffer("cos", cos, persistent=False)  # [p*p,C]
        self.register_buffer("sin", sin, persistent=False)
        space = sine_map(model.memory_encoder.position_encoding, MEMORY_WIDTH, patches)
        self.register_buffer("space", space, persistent=False)  # [1,p*p,64]
        self.register_buffer("time", times(model).detach().clone())  # [7,64], a row for each age
        self.ages = AgeCode(model)
        self.bits = BitPacker(4 * patches)

    def forward(
        self,
        track_0: Tensor,
        track_1: Tensor,
        track_x: Tensor,
        image_index: Tensor,
        memory: Tensor,
        memory_age: Tensor,
        pointers: Tensor,
        pointer_age: Tensor,
    ) -> tuple[Tensor, ...]:
        maps = memory + self.space + self.at_ages(memory_age)  # [N,M,p*p,64]
        splits = pointers.shape[2] // MEMORY_WIDTH
        points = pointers.unflatten(2, (splits, MEMORY_WIDTH))  # [N,P,C/64,64]
        placed = (points + self.ages(pointer_age).to(points.dtype).unsqueeze(2)).flatten(1, 2)  # [N,P*C/64,64]
        values = torch.cat([memory.flatten(1, 2), points.flatten(1, 2)], 1)  # [N,m,64]
        hidden = torch.cat([repeated(memory_age, memory.shape[2]), repeated(pointer_age, splits)], 1)  # [N,m]
        bias = hidden.unsqueeze(1)  # [N,1,m]

        first = self.memory_attentions[0].queries(track_x, self.cos, self.sin)
        x, queries = track_x.index_select(0, image_index), first.index_select(0, image_index)  # [N,p*p,C]
        for i, attention in enumerate(self.memory_attentions):
            if i:
                x = self.self_attentions[i - 1](x, self.cos, self.sin)
                queries = attention.queries(x, self.cos, self.sin)
            x = x + attention(queries, maps, placed, values, bias, self.cos, self.sin)
            x = self.feed_forwards[i](x)
        x = layer_norm(self.norm, x) + self.decoder.no_mask
        found = self.decoder(x, track_0.index_select(0, image_index), track_1.index_select(0, image_index))
        return found.logits, self.bits(found.logits), found.score, found.iou, found.pointer

    def at_ages(self, memory_age: Tensor) -> Tensor:
        """The code of each map's age, [N,M,1,64]; for maps that are not there it is any."""
        codes = self.time.index_select(0, memory_age.clamp(min=0).flatten())
        return codes.reshape(*memory_age.shape, 1, MEMORY_WIDTH)


class AgeCode(nn.Module):
    """Ages of pointers in frames, fp32 [N,P] -> [N,P,64]: a sine code of their share of the longest age that the model
    was trained on, through a linear layer. In fp32: conditioning frames may be thousands of frames old."""

    def __init__(self, model: Sam3TrackerVideoModel) -> None:
        super().__init__()
        self.projection = model.temporal_positional_encoding_projection_layer
        half = model.hidden_dim // 2
        exponents = 2 * (torch.arange(half, dtype=torch.float32) // 2) / half
        span = model.config.max_object_pointers_in_encoder - 1
        self.register_buffer("scales", 1 / (span * TEMPERATURE**exponents), persistent=False)  # [C/2]

    def forward(self, ages: Tensor) -> Tensor:
        angles = ages.unsqueeze(-1) * self.scales
        return self.projection(torch.cat([angles.sin(), angles.cos()], -1))


def times(model: Sam3TrackerVideoModel) -> Tensor:
    """The code of each age [7,64]: row 0 for conditioning frames (transformers' last), row t for t frames ago."""
    rows = model.memory_temporal_positional_encoding[:, 0, 0]
    return torch.cat([rows[-1:], rows[:-1]])


def repeated(ages: Tensor, times: int) -> Tensor:
    """What is added to the scores of tokens, fp32 [N,K*times], where each of K memories [N,K] has so many tokens: 0, or
    for a memory that is not there so little that nothing of it is seen."""
    return ((ages < 0).float() * MASKED).unsqueeze(2).expand(-1, -1, times).flatten(1)
