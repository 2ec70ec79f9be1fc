"""A checkpoint's configuration: reading it, whether its numbers fit together, and what the weights themselves say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    Sam3Config,
    Sam3LiteTextConfig,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3VideoConfig,
)

from export.checkpoint.error import CheckpointError
from export.checkpoint.folder import read_json
from export.sub_models import pooled_keys

CONFIG = "config.json"
MODEL_TYPES = ("sam3", "sam3_video", "sam3_lite_text")
ROTARY = 4
"""Rotary positions turn pairs of channels, half of them by row and half by column."""
PYRAMID = (4.0, 2.0, 1.0, 0.5)
"""Sizes of the feature pyramid's levels, in patches."""
TRUNK = "sam3_vit_model"
MOST_LAYERS = 256
"""More than any such model has; a million of them would take all memory before a weight is compared."""
WIDTHS = ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config", "mask_decoder_config")


def read_configuration(folder: Path) -> PreTrainedConfig | None:
    """The configuration in a folder, None where there is none (or one that names no model, as trainings write them).
    Raises CheckpointError for that of another model, or where its numbers do not fit together."""
    path = folder / CONFIG
    data = read_json(path) if path.is_file() else {}
    model_type = data.get("model_type")
    if model_type is None:
        return None
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: expected a checkpoint of type {', '.join(MODEL_TYPES[:-1])} or {MODEL_TYPES[-1]}, got"
            f" {model_type!r}; pass a SAM3 checkpoint"
        )
    try:
        config = _from_json(data)
        faults = misfits(config)
    except (TypeError, ValueError, AttributeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: transformers cannot read it ({' '.join(str(error).split())})") from error
    if faults:
        raise CheckpointError(f"{path}: its numbers do not fit: {'; '.join(faults)}; use the file saved in training")
    return config


def model_class(config: PreTrainedConfig) -> type[Sam3Model] | type[Sam3LiteTextModel]:
    """The class of transformers for a configuration."""
    return Sam3LiteTextModel if isinstance(config, Sam3LiteTextConfig) else Sam3Model


def told_by_weights(weights: Mapping[str, Tensor]) -> Sam3Config:
    """The configuration of Meta's files, which carry none: SAM3's own, with the sizes that fine-tuning and SAM 3.1
    changed, from weights under transformers' names."""
    config = Sam3Config()
    queries = weights.get("detr_decoder.query_embed.weight")
    projection = weights.get("text_encoder.text_projection.weight")
    if queries is not None and queries.ndim == 2:
        config.detr_decoder_config.num_queries = queries.shape[0]
    if projection is not None and projection.ndim == 2:
        config.text_config.projection_dim = projection.shape[0]
    return config


def misfits(config: PreTrainedConfig) -> list[str]:
    """Everything about a configuration's numbers that no model can have, or that is not SAM3's."""
    vision, text = config.vision_config, config.text_config
    trunk, detr = vision.backbone_config, config.detr_encoder_config
    if trunk.model_type != TRUNK:
        return [f"the trunk is {trunk.model_type!r}, expected {TRUNK!r}"]
    counts = {
        **{name: getattr(trunk, name) for name in ("image_size", "patch_size", "pretrain_image_size", "window_size")},
        "layers of the trunk": trunk.num_hidden_layers,
        "layers of the text encoder": text.num_hidden_layers,
        "layers of the DETR encoder": detr.num_layers,
        "layers of the decoder": config.detr_decoder_config.num_layers,
        "num_queries": config.detr_decoder_config.num_queries,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
    }
    faults = [
        f"{name} is {count}, expected one number from 1 on"
        for name, count in counts.items()
        if not isinstance(count, int) or count < 1
    ]
    faults += [
        f"{name} are {count}, expected at most {MOST_LAYERS}"
        for name, count in counts.items()
        if name.startswith("layers") and isinstance(count, int) and count > MOST_LAYERS
    ]
    return faults or [*_uneven(config), *_apart(config)]


def _uneven(config: PreTrainedConfig) -> list[str]:
    """Sizes that do not divide: images into patches, widths into heads."""
    trunk, text = config.vision_config.backbone_config, config.text_config
    behind = {name: getattr(config, name) for name in WIDTHS}
    heads = [("trunk", trunk, ROTARY), ("text encoder", text, 1), *((name, part, 1) for name, part in behind.items())]
    faults = [
        f"{name} {getattr(trunk, name)} is no multiple of patch_size {trunk.patch_size}"
        for name in ("image_size", "pretrain_image_size")
        if getattr(trunk, name) % trunk.patch_size
    ]
    for name, part, share in heads:
        width, count = part.hidden_size, part.num_attention_heads
        if count < 1 or width < 1 or width % (count * share):
            each = f" of a multiple of {share}" if share > 1 else ""
            faults.append(f"{name}: width {width} does not divide into {count} heads{each}")
    return faults


def _apart(config: PreTrainedConfig) -> list[str]:
    """Sizes that contradict each other."""
    vision, trunk = config.vision_config, config.vision_config.backbone_config
    faults = []
    beyond = [index for index in trunk.global_attn_indexes if not 0 <= index < trunk.num_hidden_layers]
    if beyond:
        faults.append(f"global_attn_indexes {beyond} are beyond the trunk's {trunk.num_hidden_layers} layers")
    widths = {vision.fpn_hidden_size, *(getattr(config, name).hidden_size for name in WIDTHS)}
    if len(widths) > 1:
        faults.append(f"the parts behind the trunk are {sorted(widths)} wide, expected one width")
    if tuple(vision.scale_factors) != PYRAMID:
        faults.append(f"scale_factors are {list(vision.scale_factors)}, expected {list(PYRAMID)}")
    if trunk.num_channels != 3:
        faults.append(f"num_channels is {trunk.num_channels}, expected 3")
    pooled = pooled_keys.fault(config)
    return [*faults, pooled] if pooled else faults


def sub_configurations(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The configurations inside of one, and those inside of these."""
    parts = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [*parts, *(inner for part in parts for inner in sub_configurations(part))]


def _from_json(data: dict[str, Any]) -> PreTrainedConfig:
    """The detector's configuration; that of a video model holds one."""
    if data["model_type"] == "sam3_lite_text":
        return Sam3LiteTextConfig.from_dict(data)
    if data["model_type"] == "sam3_video":
        return Sam3VideoConfig.from_dict(data).detector_config
    return Sam3Config.from_dict(data)
