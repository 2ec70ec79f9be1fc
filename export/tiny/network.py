"""The forward pass of training: the predictions of every decoder layer for every (image, prompt) pair of a batch.

`Sam3Model.forward` returns the last layer only and pairs one prompt with one image; training needs all layers and
several prompts for an image, and must not wait for the GPU in between. So the same modules are called here one by one,
in the order in which `Sam3Model.forward` calls them; a test checks that the results are equal.
"""

from dataclasses import dataclass

import torch
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import inverse_sigmoid

from export.tiny.dataset import NO_BOX, Batch, normalised


@dataclass(slots=True)
class Predictions:
    """N pairs, L layers, Q queries. boxes [L, N, Q, 4] cxcywh; logits [L, N, Q]; presence_logits [L, N]; masks [N, Q,
    M, M] and semantic [N, M, M], logits; memory [N, p * p, C], the image's tokens after the DETR encoder."""

    boxes: torch.Tensor
    logits: torch.Tensor
    presence_logits: torch.Tensor
    masks: torch.Tensor
    semantic: torch.Tensor
    memory: torch.Tensor


class Positions:
    """Sine positions of the coarsest level, [1, C, p, p] in fp32, computed once for each size: under autocast the model
    would compute them in bf16, and every time again."""

    def __init__(self, model: Sam3Model) -> None:
        self.encoding = model.vision_encoder.neck.position_encoding
        self.kept: dict[tuple[int, ...], torch.Tensor] = {}

    def __call__(self, level: torch.Tensor) -> torch.Tensor:
        shape = (1, *level.shape[1:])
        if shape not in self.kept:
            self.kept[shape] = self.encoding(shape, level.device, torch.float32).clone()
        return self.kept[shape]


def pyramid(model: Sam3Model, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """pixel_values [B, 3, R, R] to the three used FPN levels, [B, C, 4p, 4p], [B, C, 2p, 2p], [B, C, p, p]."""
    hidden = model.vision_encoder.backbone(pixel_values).last_hidden_state  # [B, p * p, D]
    side = pixel_values.shape[-1] // model.config.vision_config.backbone_config.patch_size
    image = hidden.transpose(1, 2).reshape(hidden.shape[0], -1, side, side)
    return [layer(image) for layer in model.vision_encoder.neck.fpn_layers[:3]]


def encode_prompts(
    model: Sam3Model, batch: Batch, level: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt features [N, 32 + K + 1, C] of text and example boxes, and their mask, True where valid."""
    b, p, length = batch.input_ids.shape
    mask = batch.attention_mask.flatten(0, 1)
    text = model.get_text_features(input_ids=batch.input_ids.flatten(0, 1), attention_mask=mask, return_dict=True)
    text = text.pooler_output.view(b, p, length, -1)
    valid = batch.box_labels != NO_BOX
    geometry = model.geometry_encoder(
        box_embeddings=batch.boxes,
        box_mask=valid,
        box_labels=torch.where(valid, batch.box_labels, 0),
        img_feats=(level,),
        img_pos_embeds=(position.expand(b, -1, -1, -1),),
    )
    tokens = geometry.last_hidden_state[:, None].to(text.dtype)  # [B, 1, K + 1, C], belongs to the last prompt
    tokens = torch.cat([torch.zeros_like(tokens).expand(-1, p - 1, -1, -1), tokens], 1)
    # A prompt without boxes has no geometry tokens at all, not even the class token.
    shown = (geometry.attention_mask.bool() & valid.any(1, keepdim=True))[:, None]
    shown = torch.cat([torch.zeros_like(shown).expand(-1, p - 1, -1), shown], 1)
    features = torch.cat([text, tokens], 2).flatten(0, 1)
    return features, torch.cat([batch.attention_mask.bool(), shown], 2).flatten(0, 1)


def forward_all_layers(model: Sam3Model, batch: Batch, positions: Positions) -> Predictions:
    """All pairs of a batch through the model; pair n is image n // P, prompt n % P. The model must be set to the
    batch's resolution."""
    return answer(model, batch, pyramid(model, normalised(batch.pixels)), positions)


def answer(model: Sam3Model, batch: Batch, levels: list[torch.Tensor], positions: Positions) -> Predictions:
    """What follows the vision encoder in `forward_all_layers`; `levels` from `pyramid`."""
    position = positions(levels[2])
    prompt, mask = encode_prompts(model, batch, levels[2], position)
    repeats = batch.input_ids.shape[1]
    levels = [level.repeat_interleave(repeats, 0) for level in levels]
    wide = mask[:, None, None]  # a mask of two axes would be inspected, and the GPU waited for
    position = position.expand(prompt.shape[0], -1, -1, -1)
    encoded = model.detr_encoder(
        vision_features=[levels[2]], text_features=prompt, vision_pos_embeds=[position], text_mask=wide
    )
    decoded = model.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=prompt,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=wide,
        spatial_shapes=torch.tensor([levels[2].shape[-2:]]),  # on the host: the model reads it as a number
    )
    states = decoded.intermediate_hidden_states
    offsets = model.detr_decoder.box_head(states)
    logits = model.dot_product_scoring(decoder_hidden_states=states, text_features=prompt, text_mask=mask)
    masks = model.mask_decoder(
        decoder_queries=states[-1],
        backbone_features=levels,
        encoder_hidden_states=encoded.last_hidden_state,
        prompt_features=prompt,
        prompt_mask=wide,
    )
    return Predictions(
        boxes=(inverse_sigmoid(decoded.reference_boxes) + offsets.float()).sigmoid(),
        logits=logits.squeeze(-1).float(),
        presence_logits=decoded.presence_logits.squeeze(-1).float(),
        masks=masks.pred_masks,
        semantic=masks.semantic_seg[:, 0].float(),
        memory=encoded.last_hidden_state,
    )
