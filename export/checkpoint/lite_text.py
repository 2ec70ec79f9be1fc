"""SAM3-LiteText: what its text encoder needs that SAM3's has from its configuration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase, Sam3LiteTextModel


def settle(model: Sam3LiteTextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fixes the length of prompts and the token that ends them, in place.

    transformers stretches the table of positions to a prompt's length on every call; here all prompts have one length,
    the tokenizer's own, so it is stretched once. Which tokens are real follows from the end token.
    """
    text = model.config.text_config
    length = min(text.max_position_embeddings, tokenizer.model_max_length)
    table = model.text_encoder.embeddings.position_embedding
    if length != text.max_position_embeddings:
        size = (length, text.hidden_size)
        stretched = F.interpolate(table.position_embedding.detach(), size=size, mode="bilinear")
        table.position_embedding = nn.Parameter(stretched.to(torch.float32), requires_grad=True)
    text.max_position_embeddings = length
    text.eos_token_id = tokenizer.eos_token_id
