"""Writes a `Sam3Model` the way Meta's own files hold it: the other way round from `export/checkpoint/layouts.py`, and
written apart from it.

`NAMES` and `SHA256` are facts about Meta's published code (facebookresearch/sam3, commit 11dec2936 of 2026-01-11, whose
model 99d02f2 of 2026-01-27 leaves as it is): how many weights and tables the model of `build_sam3_image_model` has, and
the SHA-256 of their names and shapes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

TRUNK, NECK = "backbone.vision_backbone.trunk", "backbone.vision_backbone.convs"
TEXT = "backbone.language_backbone.encoder"
ENCODERS = r"(geometry_encoder\.encode\.\d+|transformer\.encoder\.layers\.\d+)"
DECODER = r"(transformer\.decoder\.layers\.\d+)"
BLOCK = r"(resblocks\.\d+)"

RENAMED = [
    (r"^vision_encoder\.backbone\.embeddings\.position_embeddings$", f"{TRUNK}.pos_embed"),
    (r"^vision_encoder\.backbone\.embeddings\.patch_embeddings\.projection", f"{TRUNK}.patch_embed.proj"),
    (r"^vision_encoder\.backbone\.layer_norm\.", f"{TRUNK}.ln_pre."),
    (r"^vision_encoder\.backbone\.layers\.(\d+)\.attention\.o_proj", rf"{TRUNK}.blocks.\1.attn.proj"),
    (r"^vision_encoder\.backbone\.layers\.(\d+)\.attention\.qkv", rf"{TRUNK}.blocks.\1.attn.qkv"),
    (r"^vision_encoder\.backbone\.layers\.(\d+)\.layer_norm(\d)", rf"{TRUNK}.blocks.\1.norm\2"),
    (r"^vision_encoder\.backbone\.layers\.(\d+)\.mlp", rf"{TRUNK}.blocks.\1.mlp"),
    (r"^vision_encoder\.neck\.fpn_layers\.0\.scale_layers\.0", f"{NECK}.0.dconv_2x2_0"),
    (r"^vision_encoder\.neck\.fpn_layers\.0\.scale_layers\.2", f"{NECK}.0.dconv_2x2_1"),
    (r"^vision_encoder\.neck\.fpn_layers\.1\.scale_layers\.0", f"{NECK}.1.dconv_2x2"),
    (r"^vision_encoder\.neck\.fpn_layers\.(\d)\.proj1", rf"{NECK}.\1.conv_1x1"),
    (r"^vision_encoder\.neck\.fpn_layers\.(\d)\.proj2", rf"{NECK}.\1.conv_3x3"),
    (r"^text_encoder\.text_model\.embeddings\.token_embedding", f"{TEXT}.token_embedding"),
    (r"^text_encoder\.text_model\.embeddings\.position_embedding\.weight", f"{TEXT}.positional_embedding"),
    (r"^text_encoder\.text_model\.final_layer_norm", f"{TEXT}.ln_final"),
    (r"^text_encoder\.text_projection\.weight", f"{TEXT}.text_projection"),
    (r"^text_encoder\.text_model\.encoder\.layers\.(\d+)\.", rf"{TEXT}.transformer.resblocks.\1."),
    (rf"{BLOCK}\.self_attn", r"\1.attn"),
    (rf"{BLOCK}\.layer_norm(\d)", r"\1.ln_\2"),
    (rf"{BLOCK}\.mlp\.fc1", r"\1.mlp.c_fc"),
    (rf"{BLOCK}\.mlp\.fc2", r"\1.mlp.c_proj"),
    (r"^text_projection", "backbone.language_backbone.resizer"),
    (r"^geometry_encoder\.prompt_layer_norm", "geometry_encoder.norm"),
    (r"^geometry_encoder\.output_layer_norm", "geometry_encoder.encode_norm"),
    (r"^geometry_encoder\.vision_layer_norm", "geometry_encoder.img_pre_norm"),
    (r"^geometry_encoder\.layers", "geometry_encoder.encode"),
    (r"^detr_encoder", "transformer.encoder"),
    (rf"^{ENCODERS}\.cross_attn", r"\1.cross_attn_image"),
    (rf"^{ENCODERS}\.layer_norm(\d)", r"\1.norm\2"),
    (r"^detr_decoder", "transformer.decoder"),
    (r"^transformer\.decoder\.output_layer_norm", "transformer.decoder.norm"),
    (r"^transformer\.decoder\.presence_layer_norm", "transformer.decoder.presence_token_out_norm"),
    (r"^transformer\.decoder\.presence_head", "transformer.decoder.presence_token_head"),
    (r"^transformer\.decoder\.box_head", "transformer.decoder.bbox_embed"),
    (r"^transformer\.decoder\.box_rpb_embed_", "transformer.decoder.boxRPB_embed_"),
    (rf"{DECODER}\.text_cross_attn_layer_norm", r"\1.catext_norm"),
    (rf"{DECODER}\.text_cross_attn", r"\1.ca_text"),
    (rf"{DECODER}\.vision_cross_attn_layer_norm", r"\1.norm1"),
    (rf"{DECODER}\.vision_cross_attn", r"\1.cross_attn"),
    (rf"{DECODER}\.self_attn_layer_norm", r"\1.norm2"),
    (rf"{DECODER}\.mlp_layer_norm", r"\1.norm3"),
    (r"^mask_decoder\.mask_embedder", "segmentation_head.mask_predictor.mask_embed"),
    (r"^mask_decoder\.instance_projection", "segmentation_head.instance_seg_head"),
    (r"^mask_decoder\.semantic_projection", "segmentation_head.semantic_seg_head"),
    (r"^mask_decoder\.prompt_cross_attn_norm", "segmentation_head.cross_attn_norm"),
    (r"^mask_decoder\.prompt_cross_attn", "segmentation_head.cross_attend_prompt"),
    (r"^mask_decoder", "segmentation_head"),
    (r"^dot_product_scoring\.text_mlp_out_norm", "dot_prod_scoring.prompt_mlp.out_norm"),
    (r"^dot_product_scoring\.text_mlp", "dot_prod_scoring.prompt_mlp"),
    (r"^dot_product_scoring\.text_proj", "dot_prod_scoring.prompt_proj"),
    (r"^dot_product_scoring\.query_proj", "dot_prod_scoring.hs_proj"),
    (r"^(transformer\.decoder|dot_prod_scoring)\.(\w+)\.layer1\.", r"\1.\2.layers.0."),
    (r"^(transformer\.decoder|dot_prod_scoring)\.(\w+)\.layer2\.", r"\1.\2.layers.1."),
    (r"^(transformer\.decoder|dot_prod_scoring)\.(\w+)\.layer3\.", r"\1.\2.layers.2."),
    (r"^(geometry_encoder|transformer|segmentation_head)\.(.*)\.o_proj\.", r"\1.\2.out_proj."),
    (r"^(geometry_encoder|transformer)\.(.*)\.mlp\.fc(\d)", r"\1.\2.linear\3"),
    (r"\.qkv_proj\.(weight|bias)$", r".in_proj_\1"),
]
NAMES = 1134
SHA256 = "465d9450da0c9901237e8e70bc1540a97613ecd07bff43ca1e114c11f8dbe8a8"


def meta_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' model under Meta's names, projections of an attention joined."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*)\.q_proj\.(weight|bias)", name)
        if match:
            stem, kind = match.groups()
            between = "qkv" if stem.endswith(".attention") else "qkv_proj"
            joined[f"{stem}.{between}.{kind}"] = torch.cat([state[f"{stem}.{c}_proj.{kind}"] for c in "qkv"])
        elif not re.search(r"\.[kv]_proj\.(weight|bias)$", name):
            joined[name] = tensor
    found = {}
    for old, tensor in joined.items():
        name = old
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if name.endswith("pos_embed"):  # with a class token in front
            tensor = torch.cat([torch.ones_like(tensor[:, :1]), tensor], 1)
        found[name] = tensor.T.contiguous() if name.endswith("encoder.text_projection") else tensor
    return found


def tables_and_points(layers: int, globals_: Sequence[int], sides: tuple[int, int], head: int, width: int) -> dict:
    """What Meta's image model has besides: a rotary table for each layer of the trunk, for the `sides` of windows and
    of whole images in patches, and the encoding of points."""
    found = {
        f"{TRUNK}.blocks.{i}.attn.freqs_cis": torch.ones(sides[i in globals_] ** 2, head // 2, dtype=torch.complex64)
        for i in range(layers)
    }
    for name, columns in (("direct", 2), ("pool", width), ("pos_enc", width)):
        found[f"geometry_encoder.points_{name}_project.weight"] = torch.ones(width, columns)
        found[f"geometry_encoder.points_{name}_project.bias"] = torch.ones(width)
    return found


def fingerprint(shapes: Iterable[tuple[str, Iterable[int]]]) -> str:
    """SHA-256 of the lines `name 256x256`, sorted."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))}\n" for name, shape in shapes)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
