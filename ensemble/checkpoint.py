"""The sizes that a checkpoint fixes. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Layers:
    """Sizes on which nothing but the cost depends. Defaults are `facebook/sam3`."""

    parameters: float = 840e6  # of the detector, to the nearest million
    width: int = 1024  # of the ViT
    layers: int = 32
    global_layers: int = 4
    heads: int = 16
    mlp: int = 4736
    window: int = 24  # patches a side
    encoder_layers: int = 6
    decoder_layers: int = 6
    decoder_heads: int = 8
    ffn: int = 2048
    text_width: int = 1024
    text_layers: int = 24
    text_mlp: int = 4096

    @classmethod
    def of_config(cls, config: Mapping[str, Any], parameters: int) -> Layers:
        """Of the fields of a `Sam3Config`. Raises KeyError where one is missing."""
        backbone, text = config["vision_config"]["backbone_config"], config["text_config"]
        encoder, decoder = config["detr_encoder_config"], config["detr_decoder_config"]
        return cls(
            parameters=float(round(parameters, -6)),
            width=backbone["hidden_size"],
            layers=backbone["num_hidden_layers"],
            global_layers=len(backbone["global_attn_indexes"]),
            heads=backbone["num_attention_heads"],
            mlp=backbone["intermediate_size"],
            window=backbone["window_size"],
            encoder_layers=encoder["num_layers"],
            decoder_layers=decoder["num_layers"],
            decoder_heads=decoder["num_attention_heads"],
            ffn=encoder["intermediate_size"],
            text_width=text["hidden_size"],
            text_layers=text["num_hidden_layers"],
            text_mlp=text["intermediate_size"],
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The sizes that a checkpoint fixes. Defaults are `facebook/sam3` (transformers' `Sam3Config()`)."""

    name: str = "facebook/sam3"
    image_size: int = 1008  # pixels a side that it was trained at
    patch_size: int = 14  # pixels
    hidden_size: int = 256  # width of FPN, prompts and queries
    num_queries: int = 200
    context_length: int = 32  # tokens of one prompt
    vocabulary_size: int = 49408  # different tokens
    layers: Layers = field(default_factory=Layers)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Checkpoint:
        """From the fields; layers that are not told are SAM3's. Raises TypeError on unknown fields."""
        return cls(**{**data, "layers": Layers(**data.get("layers", {}))})
