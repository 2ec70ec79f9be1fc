"""A loaded checkpoint: its model, tokenizer, sizes and fingerprint, and the same weights at another resolution.

For a resolution and a number of queries a second model shares the loaded weights, so that several variants take the
memory of one and the loaded model is never changed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Sam3Model
from transformers.initialization import no_init_weights

from ensemble.spec import Checkpoint, Layers
from export.checkpoint.account import Account
from export.checkpoint.tracker import LoadedTracker
from export.sub_models import pooled_keys

PART_WEIGHTS = {
    "vision_encoder": ("vision_encoder.",),
    "text_encoder": ("text_encoder.", "text_projection."),
    "geometry_encoder": ("geometry_encoder.",),
    "decoder": ("detr_encoder.", "detr_decoder.", "dot_product_scoring."),
    "mask_head": ("mask_decoder.",),
}
"""The weights that each sub-model is made of, by the beginnings of their names."""
TRACKER_PARTS = ("tracker_neck", "tracker_step", "memory_encoder", "tracker_seed")
NO_NUMBERS = {"model_type", "architectures", "dtype", "transformers_version", "_name_or_path"}
"""Entries of a configuration on which no sub-model depends."""


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint: a `name` for people, the `model` in fp32 and eval mode at the size it was trained at, and
    the `tokenizer` (see `fixed_length`).

    `account` says what became of the files' weights, `tokenizer_place` where the tokenizer is from, `folder` where the
    configuration is and `files` which the weights are from; random weights have none of them. `tracker` is there where
    it was asked for.
    """

    name: str
    model: Sam3Model
    tokenizer: Tokenizer
    account: Account | None = None
    tokenizer_place: Path | None = None
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    tracker: LoadedTracker | None = None

    @cached_property
    def record(self) -> Checkpoint:
        """The sizes from which `ensemble/spec.py` derives names and shapes."""
        config = self.model.config
        vision = config.vision_config
        return Checkpoint(
            name=self.name,
            image_size=vision.image_size,
            patch_size=vision.backbone_config.patch_size,
            hidden_size=vision.fpn_hidden_size,
            num_queries=config.detr_decoder_config.num_queries,
            context_length=config.text_config.max_position_embeddings,
            vocabulary_size=config.text_config.vocab_size,
            layers=Layers.of_config(config.to_dict(), sum(weights.numel() for weights in self.model.parameters())),
        )

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of configuration, weights and tokenizer, wherever they were loaded from."""
        digest = hashlib.sha256(self.model.config.to_json_string().encode())
        _add(digest, self.model.state_dict())
        digest.update(self.tokenizer.to_str().encode())
        return digest.hexdigest()

    def part_sha256(self, part: str) -> str:
        """Fingerprint of what one sub-model is made from: its weights and the numbers of the configuration; of the
        tokenizer for the text encoder alone. Checkpoints that differ in the text encoder share the other four. The
        tracker's parts, where it was loaded, have one fingerprint together."""
        if part in TRACKER_PARTS:
            return self._tracker_sha256
        if part not in self._parts:
            config = _numbers(self.model.config.to_dict())
            text = config.pop("text_config")
            told = [text, self.tokenizer.to_str()] if part == "text_encoder" else config
            digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
            weights = self.model.state_dict()
            _add(digest, {name: weights[name] for name in weights if name.startswith(PART_WEIGHTS[part])})
            self._parts[part] = digest.hexdigest()
        return self._parts[part]

    @cached_property
    def _tracker_sha256(self) -> str:
        assert self.tracker is not None, "whoever asks for its parts has loaded it"
        config = _numbers(self.tracker.model.config.to_dict())
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        _add(digest, self.tracker.state())
        return digest.hexdigest()

    @cached_property
    def _parts(self) -> dict[str, str]:
        return {}


def _add(digest: Any, weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)


def _numbers(config: Any) -> Any:
    """A configuration without what says nothing about a sub-model."""
    if isinstance(config, dict):
        return {name: _numbers(value) for name, value in config.items() if name not in NO_NUMBERS}
    return config


def at_size(model: Sam3Model, resolution: int, queries: int) -> Sam3Model:
    """`model` at another resolution (pixels a side) and with its first `queries` queries: a new model of its class that
    shares all other weights.

    The rotary positions of global layers depend on the configuration's image size, so they are computed anew; nothing
    of `model` changes.
    """
    config = copy.deepcopy(model.config)
    config.image_size = resolution
    config.detr_decoder_config.num_queries = queries
    weights = model.state_dict()
    for name in ("detr_decoder.query_embed.weight", "detr_decoder.reference_points.weight"):
        weights[name] = weights[name][:queries].clone()
    with no_init_weights():  # the weights are assigned in the next line
        sized = type(model)._from_config(config, dtype=torch.float32)
    sized.load_state_dict(weights, assign=True)
    return pooled_keys.apply(sized).eval()
