"""The tracker's neck: what all objects of a frame share, computed once a frame from the image transformer's tokens.

The tracker has a feature pyramid of its own. Exact savings against transformers' modules: the mask decoder's 1x1
convolutions are folded into the 3x3 ones before them, those into the transposed convolutions are as in the vision
encoder, the level that nobody reads is left out, and the first self-attention of the memory attention runs here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from export.sub_models.attention import Form
from export.sub_models.positions import rope_tables, sine_map
from export.sub_models.tracker.arithmetic import to_map, to_tokens
from export.sub_models.tracker.memory_attention import SelfAttention
from export.sub_models.vision_encoder import pyramid_level

POSITION_SHARE = 0.1
"""How much of the map's positions is added to its features (transformers' `Sam3TrackerVideoMemoryAttention`)."""


class TrackerNeck(nn.Module):
    """`hidden` [B,p*p,width of the image transformer] -> `track_0` [B,C/8,4p,4p], `track_1` [B,C/4,2p,2p], `track_2`
    [B,C,p,p], `track_x` [B,p*p,C]."""

    def __init__(self, model: Sam3TrackerVideoModel, neck: Sam3VisionNeck, form: Form = "explicit") -> None:
        super().__init__()
        self.patches: int = model.prompt_encoder.image_embedding_size[0]
        decoder = model.mask_decoder
        projections = (decoder.conv_s0, decoder.conv_s1, None)
        levels = (pyramid_level(level) for level in neck.fpn_layers[:3])
        self.levels = nn.ModuleList(
            projected(level, projection) for level, projection in zip(levels, projections, strict=True)
        )
        positions = POSITION_SHARE * sine_map(neck.position_encoding, model.hidden_dim, self.patches)
        self.register_buffer("positions", positions, persistent=False)  # [1,p*p,C]
        self.self_attention = SelfAttention(model.memory_attention.layers[0], form)
        cos, sin = rope_tables(model.memory_attention.rotary_emb, self.patches, self.patches)
        self.register_buffer("cos", cos, persistent=False)  # [p*p,C]
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        x = to_map(hidden, self.patches)
        fine, middle, coarse = (level(x).contiguous() for level in self.levels)  # once, not for each that reads them
        tokens = to_tokens(coarse) + self.positions
        return fine, middle, coarse, self.self_attention(tokens, self.cos, self.sin)


def projected(level: nn.Module, projection: nn.Conv2d | None) -> nn.Module:
    """A pyramid level with a 1x1 convolution folded into the 3x3 one at its end, with nothing between them."""
    *before, last = level if isinstance(level, nn.Sequential) else (level.proj1, level.proj2)
    if projection is None:
        return level
    weight = projection.weight.detach()[:, :, 0, 0]  # [O,C]
    folded = nn.Conv2d(last.in_channels, weight.shape[0], last.kernel_size, padding=last.padding, device="meta")
    folded.weight = nn.Parameter(torch.einsum("om,miyx->oiyx", weight, last.weight.detach()), requires_grad=False)
    folded.bias = nn.Parameter(weight @ last.bias.detach() + projection.bias.detach(), requires_grad=False)
    return nn.Sequential(*before, folded)
