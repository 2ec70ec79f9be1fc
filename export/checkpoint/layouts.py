"""The names that weights have in Meta's files, and those that transformers' `Sam3Model` has for them.

Meta's side is that of the published model code (facebookresearch/sam3, `sam3/model_builder.py`), transformers' side
that of its conversion (huggingface/transformers, `models/sam3/convert_sam3_to_hf.py`). Meta keeps the projections of an
attention in one tensor, a class token in front of the positions, and CLIP's projection transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from export.checkpoint.error import CheckpointError
from export.checkpoint.training import bare

ATTENTION = {".out_proj.": ".o_proj."}
FEED_FORWARD = {".linear1.": ".mlp.fc1.", ".linear2.": ".mlp.fc2."}
NORMS = {".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.", ".norm3.": ".layer_norm3."}
CROSS = {".cross_attn_image.": ".cross_attn."}
HEADS = {".layers.0.": ".layer1.", ".layers.1.": ".layer2.", ".layers.2.": ".layer3."}

META: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "backbone.vision_backbone.trunk.",
        "vision_encoder.backbone.",
        {
            "pos_embed": "embeddings.position_embeddings",
            "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
            "ln_pre.": "layer_norm.",
            "blocks.": "layers.",
            ".attn.proj.": ".attention.o_proj.",
            ".attn.": ".attention.",
            **NORMS,
        },
    ),
    (
        "backbone.vision_backbone.convs.",
        "vision_encoder.neck.fpn_layers.",
        {
            ".dconv_2x2_0.": ".scale_layers.0.",
            ".dconv_2x2_1.": ".scale_layers.2.",
            ".dconv_2x2.": ".scale_layers.0.",
            ".conv_1x1.": ".proj1.",
            ".conv_3x3.": ".proj2.",
        },
    ),
    (
        "backbone.language_backbone.encoder.",
        "text_encoder.",
        {
            "token_embedding.": "text_model.embeddings.token_embedding.",
            "positional_embedding": "text_model.embeddings.position_embedding.weight",
            "ln_final.": "text_model.final_layer_norm.",
            "text_projection": "text_projection.weight",
            "transformer.resblocks.": "text_model.encoder.layers.",
            ".attn.": ".self_attn.",
            ".ln_1.": ".layer_norm1.",
            ".ln_2.": ".layer_norm2.",
            ".c_fc.": ".fc1.",
            ".c_proj.": ".fc2.",
        },
    ),
    ("backbone.language_backbone.resizer.", "text_projection.", {}),
    (
        "geometry_encoder.",
        "geometry_encoder.",
        {
            "encode_norm.": "output_layer_norm.",
            "img_pre_norm.": "vision_layer_norm.",
            "encode.": "layers.",
            **CROSS,
            **ATTENTION,
            **FEED_FORWARD,
            **NORMS,
        },
    ),
    ("transformer.encoder.", "detr_encoder.", {**CROSS, **ATTENTION, **FEED_FORWARD, **NORMS}),
    (
        "transformer.decoder.layers.",
        "detr_decoder.layers.",
        {
            ".ca_text.": ".text_cross_attn.",
            ".cross_attn.": ".vision_cross_attn.",
            ".norm1.": ".vision_cross_attn_layer_norm.",
            ".catext_norm.": ".text_cross_attn_layer_norm.",
            ".norm2.": ".self_attn_layer_norm.",
            ".norm3.": ".mlp_layer_norm.",
            **ATTENTION,
            **FEED_FORWARD,
        },
    ),
    (
        "transformer.decoder.",
        "detr_decoder.",
        {
            "presence_token_out_norm.": "presence_layer_norm.",
            "presence_token_head.": "presence_head.",
            "bbox_embed.": "box_head.",
            "boxRPB_embed_": "box_rpb_embed_",
            **HEADS,
        },
    ),
    (
        "dot_prod_scoring.",
        "dot_product_scoring.",
        {
            "prompt_mlp.out_norm.": "text_mlp_out_norm.",
            "prompt_mlp.": "text_mlp.",
            "prompt_proj.": "text_proj.",
            "hs_proj.": "query_proj.",
            **HEADS,
        },
    ),
    (
        "segmentation_head.",
        "mask_decoder.",
        {
            "mask_predictor.mask_embed.": "mask_embedder.",
            "mask_embed.": "mask_embedder.",
            "instance_seg_head.": "instance_projection.",
            "semantic_seg_head.": "semantic_projection.",
            "cross_attend_prompt.": "prompt_cross_attn.",
            "cross_attn_norm.": "prompt_cross_attn_norm.",
            **ATTENTION,
        },
    ),
)
"""Meta's prefix, transformers' prefix, and what is replaced, in this order, in the rest of a name."""

WHOLE_NAMES = {"norm.weight": "_layer_norm.weight", "norm.bias": "_layer_norm.bias"}
"""The one norm at the end of a part, which is told from `...norm.` inside of names by being the whole rest."""
FINAL_NORMS = {"geometry_encoder.": "prompt", "detr_decoder.": "output"}

TRACKER = "the tracker of a video model"
NOT_USED = {
    TRACKER: r"(sam2_predictor|inst_interactive_predictor|tracker(_model|_neck)?)\.",
    "feature pyramids of the tracker": r".*\b(sam2_convs|interactive_convs|propagation_convs)\.",
    "rotary tables": r".*\.(freqs_cis(_real|_imag)?|rope_embeddings|(original_)?inv_freq)$",
    "position numbers": r".*\.position_ids$",
    "attention masks": r".*\.attn_mask$",
    "point and mask prompts": r"geometry_encoder\.(points_|mask_encoder\.)",
    "instance queries": r"(transformer\.decoder|detr_decoder)\.instance_",
    "losses and matchers": r"(criterion|loss|losses|matcher|loss_fn)\.",
    "counters of a training": r"(n_averaged|num_updates|decay|epoch|step|iteration|logit_scale)$",
}
"""Weights that are in such files and that the detector of pictures does not have, by what they are for."""
_NOT_USED = {reason: re.compile(rule) for reason, rule in NOT_USED.items()}
_OURS = re.compile(r"(vision_encoder|text_encoder|detr_encoder|detr_decoder|mask_decoder)\.")
_LITE_TEXT = re.compile(r"backbone\.language_backbone\.(encoder\.transformer\.\d+\.|projector\.)")


@dataclass(frozen=True)
class Weight:
    """One weight under transformers' name, and the name that it has in the file."""

    name: str
    tensor: Tensor
    origin: str


def layout_of(names: list[str], file: str) -> str:
    """`transformers` or `meta`, by the bare names of a file's weights. Raises CheckpointError for those of another
    model."""
    if any(_OURS.match(name) for name in names):
        return "transformers"
    if any(_LITE_TEXT.match(name) for name in names):
        raise CheckpointError(
            f"{file} is SAM3-LiteText in its authors' layout, expected transformers'; pass the folder or hub name of"
            " its transformers version"
        )
    if any(name.startswith("backbone.vision_backbone.") for name in names):
        return "meta"
    raise CheckpointError(
        f"{file}: expected the weights of SAM3 (backbone.vision_backbone... or vision_encoder...), found those of"
        f" another model: {', '.join(sorted(names)[:3])} of {len(names)}; pass a SAM3 checkpoint"
    )


def not_used(name: str) -> str | None:
    """What a weight is for that the detector does not have; None for all others. `name` is bare."""
    return next((reason for reason, rule in _NOT_USED.items() if rule.match(name)), None)


def translated(weights: dict[str, Tensor], layout: str) -> Iterator[Weight]:
    """The weights of a file under transformers' names, tensors that Meta joined apart. A name that the table does not
    know stays as it is."""
    for origin, tensor in weights.items():
        name = bare(origin)
        if layout == "transformers":
            yield Weight(name, tensor, origin)
        else:
            for part, piece in _pieces(translated_name(name), tensor):
                yield Weight(part, piece, origin)


def translated_name(name: str) -> str:
    """transformers' name of Meta's weight; joined projections keep `qkv.` or `in_proj_`."""
    for theirs, ours, replacements in META:
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            if rest in WHOLE_NAMES and ours in FINAL_NORMS:
                return ours + FINAL_NORMS[ours] + WHOLE_NAMES[rest]
            for old, new in replacements.items():
                rest = rest.replace(old, new)
            return ours + rest
    return name


def _pieces(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    joined = re.search(r"\.(qkv\.|in_proj_)(weight|bias)$", name)
    if joined and tensor.ndim and tensor.shape[0] % 3 == 0:
        for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{name[: joined.start()]}.{letter}_proj.{joined[2]}", piece
    elif name.endswith("position_embeddings"):
        yield name, _without_class_token(tensor)
    elif name == "text_encoder.text_projection.weight":
        yield name, tensor.T
    else:
        yield name, tensor


def _without_class_token(positions: Tensor) -> Tensor:
    """Positions [1,p*p,C] of [1,1+p*p,C], whose first belongs to a class token that SAM3's trunk drops."""
    count = positions.shape[1] - 1 if positions.ndim == 3 else 0
    return positions[:, 1:] if count > 0 and math.isqrt(count) ** 2 == count else positions
