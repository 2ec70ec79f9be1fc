"""The sizes of SAM3's layers, which its cost in arithmetic and in memory depends on. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ensemble.spec import Checkpoint, check_resolution

_OF_CHECKPOINT = {"patch": "patch_size", "fpn": "hidden_size", "queries": "num_queries", "context": "context_length"}
"""Name of a size here -> in a `Checkpoint`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes that the cost depends on; the defaults are `facebook/sam3`."""

    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    parameters: float = 840e6
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

    @property
    def patch(self) -> int:
        return self.checkpoint.patch_size

    @property
    def fpn(self) -> int:
        """Width of neck, DETR and masks."""
        return self.checkpoint.hidden_size

    @property
    def queries(self) -> int:
        return self.checkpoint.num_queries

    @property
    def context(self) -> int:
        return self.checkpoint.context_length

    def patches(self, resolution: int) -> int:
        """n = p². Raises ValueError where the resolution is no multiple of the patch."""
        check_resolution(resolution, self.patch)
        return (resolution // self.patch) ** 2

    def padded(self, resolution: int) -> int:
        """Patches after each side is filled up to whole windows: what windowed attention computes on."""
        return (math.ceil(resolution // self.patch / self.window) * self.window) ** 2

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Architecture:
        """Of a checkpoint's `config.json`; of a video model the detector's, without its tracker. Parameters are counted
        in its safetensors file."""
        config = json.loads((folder / "config.json").read_text())
        config = config.get("detector_config", config)
        vision, backbone = config["vision_config"], config["vision_config"]["backbone_config"]
        text, encoder, decoder = config["text_config"], config["detr_encoder_config"], config["detr_decoder_config"]
        weights = folder / "model.safetensors"
        return cls(
            checkpoint=_sizes_of(
                patch=backbone["patch_size"],
                fpn=vision["fpn_hidden_size"],
                queries=decoder["num_queries"],
                context=text["max_position_embeddings"],
            ),
            parameters=_parameters_in(weights) if weights.is_file() else cls().parameters,
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

    def to_dict(self) -> dict[str, float]:
        """Every size by name, as result files hold them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "checkpoint"}
        return own | {name: getattr(self, name) for name in _OF_CHECKPOINT}

    @classmethod
    def from_dict(cls, sizes: Mapping[str, float]) -> Architecture:
        """The inverse of `to_dict`; a size that is not there is SAM3's. Raises TypeError on unknown names."""
        own = {name: size for name, size in sizes.items() if name not in _OF_CHECKPOINT}
        return cls(_sizes_of(**{n: int(s) for n, s in sizes.items() if n in _OF_CHECKPOINT}), **own)  # type: ignore[arg-type]


def _sizes_of(**sizes: int) -> Checkpoint:
    """A checkpoint with these sizes; no cost depends on its name or on the resolution that it was trained at."""
    return Checkpoint(**{_OF_CHECKPOINT[name]: size for name, size in sizes.items()})  # type: ignore[arg-type]


SAM3 = Architecture()


def _parameters_in(weights: Path) -> int:
    """Of the detector in a safetensors file, which begins with the length of a JSON header that has every shape."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(
        math.prod(tensor["shape"])
        for name, tensor in header.items()
        if name != "__metadata__" and not name.startswith("tracker_")
    )
