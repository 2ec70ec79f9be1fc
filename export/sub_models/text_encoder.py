"""The text encoder of SAM3: encodes prompts as one feature for each of their 32 tokens, the same for every resolution.

Attention is causal and prompts are padded on the right, so real tokens never attend to padding and need no attention
mask; the features of padding tokens mean nothing and are masked where they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3Model

from export.sub_models.attention import MASKED, Attention, Form
from export.sub_models.precision import layer_norm


class TextEncoder(nn.Module):
    """`input_ids` int32 [N,L] -> `text_features` [N,L,C]"""

    fp32_islands = ("causal_bias",)

    def __init__(self, model: Sam3Model, form: Form = "explicit") -> None:
        super().__init__()
        text = model.text_encoder.text_model
        length = text.embeddings.position_embedding.num_embeddings
        self.tokens = text.embeddings.token_embedding
        self.positions = text.embeddings.position_embedding.weight
        self.layers = nn.ModuleList(TextLayer(layer, form) for layer in text.encoder.layers)
        self.norm, self.projection = text.final_layer_norm, model.text_projection
        self.register_buffer("causal_bias", torch.full((length, length), MASKED).triu(1), persistent=False)  # [L,L]

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions  # [N,L,W]
        for layer in self.layers:
            x = layer(x, self.causal_bias)
        return self.projection(layer_norm(self.norm, x))


class TextLayer(nn.Module):
    """One CLIP layer over [N,L,W]."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        super().__init__()
        self.attention = Attention(layer.self_attn, ("qkv",), form)
        self.norm1, self.norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(layer_norm(self.norm1, x), bias=bias)
        return x + self.mlp(layer_norm(self.norm2, x))
