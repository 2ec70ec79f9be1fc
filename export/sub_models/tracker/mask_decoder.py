"""The tracker's mask decoder: from the tokens of a frame that were compared with an object's memory to the object's
mask, its score, its pointer.

Tracking has no clicks, so the decoder's own tokens are constants, and so is what its first self-attention makes of
them. Of its three masks only the one with the best predicted IoU is drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3TrackerVideoModel

from export.sub_models.attention import Attention, Form
from export.sub_models.precision import layer_norm
from export.sub_models.tracker.arithmetic import channel_norm, to_map, to_tokens

NO_OBJECT = -1024.0
"""Mask logit all over a frame that an object is not in (transformers' `NO_OBJ_SCORE`)."""
MASKS = 3
"""Masks that the decoder draws for one object, from which it chooses."""


class Decoded(NamedTuple):
    """Of N objects: `logits` [N,4p,4p], `score` fp32 [N] (a logit; not above 0 means absent), `iou` fp32 [N] as
    predicted, `pointer` [N,C]."""

    logits: Tensor
    score: Tensor
    iou: Tensor
    pointer: Tensor


class MaskDecoder(nn.Module):
    """Tokens [N,p*p,C], with the mask prompt added, and the frames' maps [N,C/8,4p,4p] and [N,C/4,2p,2p] -> `Decoded`.

    `no_mask` [1,1,C] is the prompt where there is no mask, `no_object` [1,C] the pointer of an absent object.
    """

    fp32_islands = ("iou_head", "score_head")

    def __init__(self, model: Sam3TrackerVideoModel, form: Form = "explicit") -> None:
        super().__init__()
        source = model.mask_decoder
        self.patches: int = model.prompt_encoder.image_embedding_size[0]
        tokens = own_tokens(model)
        first, *_ = source.transformer.layers
        attended = first.layer_norm1(first.self_attn(tokens, tokens, tokens)[0])
        self.register_buffer("tokens", tokens[0].detach().clone())  # [1,8,C]
        self.register_buffer("attended", attended[0].detach().clone())  # [1,8,C]
        positions = model.get_image_wide_positional_embeddings()  # [1,C,p,p]
        self.register_buffer("positions", to_tokens(positions).detach().clone())  # [1,p*p,C]
        self.register_buffer("no_mask", model.prompt_encoder.no_mask_embed.weight.detach()[None].clone())
        self.register_buffer("no_object", model.no_object_pointer.detach().clone())
        self.layers = nn.ModuleList(
            TwoWayLayer(layer, form, first=i == 0) for i, layer in enumerate(source.transformer.layers)
        )
        self.last = Attention(source.transformer.final_attn_token_to_image, ("q", "k", "v"), form)
        self.norm = source.transformer.layer_norm_final_attn
        self.up_1, self.up_2, self.up_norm = source.upscale_conv1, source.upscale_conv2, source.upscale_layer_norm
        self.mask_heads = nn.ModuleList(list(source.output_hypernetworks_mlps)[1:])
        self.iou_head, self.score_head = source.iou_prediction_head, source.pred_obj_score_head
        self.pointer_head = model.object_pointer_proj
        self.register_buffer("ranks", torch.arange(MASKS), persistent=False)

    def forward(self, x: Tensor, fine: Tensor, middle: Tensor) -> Decoded:
        n = x.shape[0]
        tokens, queries = self.tokens.expand(n, -1, -1), self.attended.expand(n, -1, -1)
        for layer in self.layers:
            queries, x = layer(queries, x, tokens, self.positions)
        queries = queries + self.last(queries + tokens, x + self.positions, x)
        queries = layer_norm(self.norm, queries)  # object score, IoU, single mask, three masks, two of the empty prompt
        ious = self.iou_head(queries[:, 1].float())[:, 1:]  # [N,3]
        best = (ious.argmax(-1, keepdim=True) == self.ranks).to(x.dtype).unsqueeze(1)  # [N,1,3], one of them 1
        masks = queries[:, 3 : 3 + MASKS]  # [N,3,C]
        kernels = torch.stack([head(masks[:, i]) for i, head in enumerate(self.mask_heads)], 1)  # [N,3,C/8]
        logits = (best @ kernels) @ self.upscaled(x, fine, middle).flatten(2)  # [N,1,16*p*p]
        score = self.score_head(queries[:, 0].float())  # [N,1]
        there = score > 0
        logits = torch.where(there, logits.squeeze(1), NO_OBJECT).unflatten(1, (4 * self.patches, 4 * self.patches))
        pointer = torch.where(there, self.pointer_head((best @ masks).squeeze(1)), self.no_object)
        return Decoded(logits, score.squeeze(1), ious.amax(-1), pointer)

    def upscaled(self, x: Tensor, fine: Tensor, middle: Tensor) -> Tensor:
        """Features [N,C/8,4p,4p] of the pixels of the masks."""
        x = self.up_1(to_map(x, self.patches)) + middle
        x = F.gelu(channel_norm(self.up_norm, x))
        return F.gelu(self.up_2(x) + fine)


class TwoWayLayer(nn.Module):
    """Tokens attend to each other and to the frame, the frame attends to the tokens."""

    def __init__(self, layer: nn.Module, form: Form, first: bool) -> None:
        super().__init__()
        self.self_attention = None if first else Attention(layer.self_attn, ("qk", "v"), form)
        self.to_frame = Attention(layer.cross_attn_token_to_image, ("q", "k", "v"), form)
        self.to_tokens = Attention(layer.cross_attn_image_to_token, ("q", "k", "v"), form)
        self.mlp = layer.mlp
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2
        self.norm3, self.norm4 = layer.layer_norm3, layer.layer_norm4

    def forward(self, queries: Tensor, x: Tensor, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """queries and `tokens` [N,8,C], x [N,p*p,C], `positions` [1,p*p,C]. The first layer is given queries that its
        self-attention, a constant, has run on."""
        if self.self_attention is not None:
            queries = layer_norm(self.norm1, queries + self.self_attention(queries + tokens, queries))
        queries = layer_norm(self.norm2, queries + self.to_frame(queries + tokens, x + positions, x))
        queries = layer_norm(self.norm3, queries + self.mlp(queries))
        x = layer_norm(self.norm4, x + self.to_tokens(x + positions, queries + tokens, queries))
        return queries, x


def own_tokens(model: Sam3TrackerVideoModel) -> Tensor:
    """The decoder's tokens [1,1,8,C] where there are no clicks: object score, IoU, four masks, and the prompt encoder's
    for one click that is none and its padding."""
    source = model.mask_decoder
    own = torch.cat([source.obj_score_token.weight, source.iou_token.weight, source.mask_tokens.weight])
    nowhere = torch.zeros(1, 1, 1, 2), -torch.ones(1, 1, 1, dtype=torch.int32)
    sparse, _ = model.prompt_encoder(*nowhere, None, None)  # [1,1,2,C]
    return torch.cat([own[None, None], sparse], 2)
