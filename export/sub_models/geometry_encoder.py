"""The geometry encoder of SAM3: encodes the exemplar boxes of each (image, class) pair as prompt features, one token
for each box and a class token.

transformers puts the class token right behind the last real box; here it is first. Attention does not depend on the
order of tokens, so every token's value is the same and nothing needs to be scattered. Keys and values of the image are
computed once per image and gathered by pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy

from export.sub_models.attention import Attention, Form, token_bias
from export.sub_models.positions import BoxSine, sine_map
from export.sub_models.precision import layer_norm
from export.sub_models.roi_align import roi_align


class GeometryEncoder(nn.Module):
    """`fpn_2` [B,C,p,p], `image_index` int32 [N], `boxes` fp32 [N,K,4] cxcywh in 0..1, `box_labels` int32 [N,K] (1, 0,
    -10 padding) -> `geometry_features` [N,K+1,C], class token first."""

    fp32_islands = ("sine", "box_projection", "position_projection")

    def __init__(self, model: Sam3Model, form: Form = "explicit") -> None:
        super().__init__()
        source, config = model.geometry_encoder, model.config.vision_config
        self.patches: int = config.image_size // config.backbone_config.patch_size
        self.roi_size: int = source.roi_size
        positions = sine_map(model.vision_encoder.neck.position_encoding, source.hidden_size, self.patches)
        self.register_buffer("positions", positions)
        self.sine = BoxSine(source.hidden_size // 2)
        self.labels, self.class_token = source.label_embed, source.cls_embed
        self.box_projection, self.position_projection = source.boxes_direct_project, source.boxes_pos_enc_project
        self.pool_projection, self.vision_norm = source.boxes_pool_project, source.vision_layer_norm
        self.prompt_projection, self.prompt_norm = source.final_proj, source.prompt_layer_norm
        self.layers = nn.ModuleList(GeometryLayer(layer, form) for layer in source.layers)
        self.norm = source.output_layer_norm

    def forward(self, fpn_2: Tensor, image_index: Tensor, boxes: Tensor, box_labels: Tensor) -> Tensor:
        image = fpn_2.flatten(2).transpose(1, 2)  # [B,p*p,C]
        x = self.embed_boxes(image, image_index, boxes, box_labels)  # [N,K,C]
        first = self.class_token.weight.expand(x.shape[0], 1, -1)  # [N,1,C]
        x = layer_norm(self.prompt_norm, self.prompt_projection(torch.cat([first, x], 1)))
        seen = torch.cat([torch.ones_like(box_labels[:, :1]), (box_labels >= 0).to(box_labels.dtype)], 1)  # [N,K+1]
        bias = token_bias(seen)
        for layer in self.layers:
            x = layer(x, bias, image, image + self.positions, image_index)
        return layer_norm(self.norm, x)

    def embed_boxes(self, image: Tensor, image_index: Tensor, boxes: Tensor, box_labels: Tensor) -> Tensor:
        """Sum of four codes of a box [N,K,C]: its coordinates, the image inside it, the sine code of its centre, its
        label."""
        p, dtype = self.patches, image.dtype
        normed = layer_norm(self.vision_norm, image.float()).unflatten(1, (p, p))  # [B,p,p,C], fp32 as the boxes are
        corners = box_cxcywh_to_xyxy(boxes) * p  # in feature-map pixels
        pooled = roi_align(normed, image_index, corners, self.roi_size).to(dtype)  # [N,K,7,7,C]
        pooled = pooled.flatten(0, 1).permute(0, 3, 1, 2)  # [N*K,C,7,7]
        pooled = self.pool_projection(pooled).flatten(1).unflatten(0, (-1, boxes.shape[1]))  # [N,K,C]
        x, y, width, height = boxes.unbind(-1)
        code = torch.cat([self.sine(y), self.sine(x), height[..., None], width[..., None]], -1)  # [N,K,C+2]
        coordinates = (self.box_projection(boxes) + self.position_projection(code)).to(dtype)
        return pooled + coordinates + self.labels(box_labels.clamp(min=0))


class GeometryLayer(nn.Module):
    """Prompt tokens [N,K+1,C] attend to each other, then to their image."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        super().__init__()
        self.self_attention = Attention(layer.self_attn, ("qkv",), form)
        self.image_attention = Attention(layer.cross_attn, ("q", "k", "v"), form)
        self.norm1, self.norm2, self.norm3 = layer.layer_norm1, layer.layer_norm2, layer.layer_norm3
        self.mlp = layer.mlp

    def forward(self, x: Tensor, bias: Tensor, image: Tensor, positioned: Tensor, image_index: Tensor) -> Tensor:
        x = x + self.self_attention(layer_norm(self.norm1, x), bias=bias)
        q, k, v = self.image_attention.project(layer_norm(self.norm2, x), positioned, image)
        x = x + self.image_attention.attend(q, k.index_select(0, image_index), v.index_select(0, image_index))
        return x + self.mlp(layer_norm(self.norm3, x))
