"""The DETR encoder and decoder of SAM3: finds what N (image, class) pairs show, from the features of B images and N
prompts.

All pairs go through one call: image features enter once, and `image_index` says which of them a pair reads. The first
encoder layer attends to the image before it meets any text, so that attention runs once per image. The first decoder
layer attends to learned queries before it meets text or image, so that attention runs once per call. The path of the
boxes stays in fp32 whatever the precision: boxes are refined layer by layer, and errors would add up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy, inverse_sigmoid

from export.sub_models import pooled_keys
from export.sub_models.attention import Attention, Form, token_bias
from export.sub_models.positions import BoxSine, sine_map
from export.sub_models.precision import layer_norm


class Decoder(nn.Module):
    """`fpn_2` [B,C,p,p], `image_index` int32 [N], `prompt_features` [N,S,C], `prompt_mask` int32 [N,S] -> `pred_logits`
    fp32 [N,Q], `pred_boxes` fp32 [N,Q,4] xyxy in 0..1, `presence_logits` fp32 [N,1], `query_features` [N,Q,C], `memory`
    [N,p*p,C].

    The score of a query is sigmoid(pred_logits) * sigmoid(presence_logits).
    """

    fp32_islands = (
        "sine",
        "bias_x.coordinates",
        "bias_y.coordinates",
        "references",
        "box_head",
        "presence_head",
        "scoring",
    )

    def __init__(self, model: Sam3Model, form: Form = "explicit") -> None:
        super().__init__()
        source, config = model.detr_decoder, model.config.vision_config
        patches = config.image_size // config.backbone_config.patch_size
        positions = sine_map(model.vision_encoder.neck.position_encoding, source.hidden_size, patches)
        self.register_buffer("positions", positions, persistent=False)  # [1,p*p,C]
        pools = pooled_keys.pools(model.config)
        self.pooled_sides = [patches if pools and i else 0 for i in range(len(model.detr_encoder.layers))]
        self.encoder_layers = nn.ModuleList(
            EncoderLayer(layer, form, side)
            for layer, side in zip(model.detr_encoder.layers, self.pooled_sides, strict=True)
        )
        self.decoder_layers = nn.ModuleList(DecoderLayer(layer, form) for layer in source.layers)
        queries = torch.cat([source.presence_token.weight, source.query_embed.weight]).detach()
        self.register_buffer("queries", queries[None].clone())  # [1,1+Q,C], presence token first
        self.register_buffer("references", source.reference_points.weight.detach().sigmoid()[None])  # [1,Q,4] cxcywh
        self.sine = BoxSine(source.hidden_size // 2)
        self.reference_head, self.box_head, self.norm = source.ref_point_head, source.box_head, source.output_layer_norm
        self.bias_x, self.bias_y = BoxBias(source.box_rpb_embed_x, patches), BoxBias(source.box_rpb_embed_y, patches)
        self.presence_head, self.presence_norm = source.presence_head, source.presence_layer_norm
        self.presence_limit: float = source.clamp_presence_logit_max_val
        self.scoring = model.dot_product_scoring

    def forward(
        self, fpn_2: Tensor, image_index: Tensor, prompt_features: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, ...]:
        token_mask = token_bias(prompt_mask)  # [N,1,1,S]
        memory = self.encode(fpn_2, image_index, prompt_features, token_mask)  # [N,p*p,C]
        hidden, boxes = self.decode(memory, prompt_features, token_mask)  # [N,1+Q,C], [N,Q,4] cxcywh
        queries = layer_norm(self.norm, hidden[:, 1:].float())  # [N,Q,C]
        logits = self.scoring(queries[None], prompt_features.float(), prompt_mask)[0, :, :, 0]  # [N,Q]
        presence = self.presence_head(layer_norm(self.presence_norm, hidden[:, 0].float()))  # [N,1]
        presence = presence.clamp(-self.presence_limit, self.presence_limit)
        return logits, box_cxcywh_to_xyxy(boxes), presence, queries.to(fpn_2.dtype), memory

    def encode(self, fpn_2: Tensor, image_index: Tensor, prompt: Tensor, token_mask: Tensor) -> Tensor:
        """Image tokens that have read the prompt: [N,p*p,C]."""
        x = fpn_2.flatten(2).transpose(1, 2)  # [B,p*p,C]
        for i, layer in enumerate(self.encoder_layers):
            x = layer.read_image(x, self.positions)
            if i == 0:
                x = x.index_select(0, image_index)  # [N,p*p,C]
            x = layer.read_prompt(x, prompt, token_mask)
        return x

    def decode(self, memory: Tensor, prompt: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the presence token and the queries [N,1+Q,C], and their refined boxes [N,Q,4] cxcywh in
        fp32."""
        keys = memory + self.positions
        hidden, boxes = self.queries, self.references  # [1,...] until the first layer reads the prompt
        for layer in self.decoder_layers:
            position = self.reference_head(self.box_code(boxes).to(memory.dtype))  # [N,Q,C]
            position = F.pad(position, (0, 0, 1, 0))  # zero for the presence token
            hidden = layer(hidden, position, prompt, token_mask, memory, keys, self.edge_bias(boxes))
            step = self.box_head(layer_norm(self.norm, hidden[:, 1:].float()))  # [N,Q,4]
            boxes = (step + inverse_sigmoid(boxes)).sigmoid()
        return hidden, boxes

    def box_code(self, boxes: Tensor) -> Tensor:
        """Sine code of reference boxes [N,Q,4] cxcywh in the checkpoint's order y, x, w, h: [N,Q,2C] fp32."""
        x, y, width, height = boxes.unbind(-1)
        return self.sine(torch.stack([y, x, width, height], -1)).flatten(2)

    def edge_bias(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Relative position bias of reference boxes on the map's rows and on its columns: two of [N,heads,Q,p]."""
        left, top, right, bottom = box_cxcywh_to_xyxy(boxes).unbind(-1)
        return self.bias_y(top, bottom), self.bias_x(left, right)


class EncoderLayer(nn.Module):
    """One layer of the DETR encoder, in the two halves between which images become pairs.

    `pooled_side` is the side of the map in patches where keys and values are pooled (see `pooled_keys`), or 0.
    """

    def __init__(self, layer: nn.Module, form: Form, pooled_side: int = 0) -> None:
        super().__init__()
        self.pooled_side = pooled_side
        self.self_attention = Attention(layer.self_attn, self.image_inputs, form)
        self.prompt_attention = Attention(layer.cross_attn, ("q", "kv"), form)
        self.norm1, self.norm2, self.norm3 = layer.layer_norm1, layer.layer_norm2, layer.layer_norm3
        self.mlp = layer.mlp

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """How the attention to the image joins its projections: pooled keys are not what queries are made of."""
        return ("q", "k", "v") if self.pooled_side else ("qk", "v")

    def read_image(self, x: Tensor, positions: Tensor) -> Tensor:
        normed = layer_norm(self.norm1, x)
        if self.pooled_side:
            values, where = (pooled_keys.pool(t, self.pooled_side) for t in (normed, positions))
            return x + self.self_attention(normed + positions, values + where, values)
        return x + self.self_attention(normed + positions, normed)

    def read_prompt(self, x: Tensor, prompt: Tensor, token_mask: Tensor) -> Tensor:
        x = x + self.prompt_attention(layer_norm(self.norm2, x), prompt, bias=token_mask)
        return x + self.mlp(layer_norm(self.norm3, x))


class DecoderLayer(nn.Module):
    """One layer of the DETR decoder over [N,1+Q,C] (or [1,1+Q,C] in the first layer); `edge_bias` is
    `Decoder.edge_bias`'s."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        super().__init__()
        self.self_attention = Attention(layer.self_attn, ("qk", "v"), form)
        self.prompt_attention = Attention(layer.text_cross_attn, ("q", "kv"), form)
        self.image_attention = Attention(layer.vision_cross_attn, ("q", "k", "v"), form)
        self.norm1, self.norm2 = layer.self_attn_layer_norm, layer.text_cross_attn_layer_norm
        self.norm3, self.norm4 = layer.vision_cross_attn_layer_norm, layer.mlp_layer_norm
        self.mlp = layer.mlp

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        prompt: Tensor,
        token_mask: Tensor,
        memory: Tensor,
        keys: Tensor,
        edge_bias: tuple[Tensor, Tensor],
    ) -> Tensor:
        x = layer_norm(self.norm1, x + self.self_attention(x + position, x))
        x = x.expand(prompt.shape[0], -1, -1)
        x = layer_norm(self.norm2, x + self.prompt_attention(x + position, prompt, bias=token_mask))
        q, k, v = self.image_attention.project(x + position, keys, memory)
        x = layer_norm(self.norm3, x + self.image_attention.attend_boxes(q, k, v, *edge_bias))
        return layer_norm(self.norm4, x + self.mlp(x))


class BoxBias(nn.Module):
    """Relative position bias along one axis, from the edges `low` and `high` [N,Q] of boxes -> [N,heads,Q,p]: a small
    MLP of `edge_distances`."""

    def __init__(self, mlp: nn.Module, patches: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.register_buffer("coordinates", torch.arange(patches) / patches, persistent=False)  # [p]

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        distances = edge_distances(low, high, self.coordinates)
        return self.mlp(distances.to(self.mlp.layer1.weight.dtype)).permute(0, 3, 1, 2)


def edge_distances(low: Tensor, high: Tensor, coordinates: Tensor) -> Tensor:
    """How far each coordinate [p] is from the two edges [N,Q] of boxes, on a signed log scale: [N,Q,p,2]."""
    distance = 8.0 * (coordinates[:, None] - torch.stack([low, high], -1).unsqueeze(2))
    return torch.sign(distance) * torch.log2(distance.abs() + 1.0) / 3.0  # log2(8) = 3
