"""The account of a checkpoint's weights: each of the model's is there once, with its shape and usable values, and each
of the file's is used or known to be of no use. Anything else refuses the checkpoint, with names and counts.

A text encoder that is left at random gives no detections and no error anywhere else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from export.checkpoint.error import CheckpointError, named
from export.checkpoint.layouts import Weight

NOT_READ = {
    "the last level of the feature pyramid": r"(vision_encoder\.neck|tracker_neck)\.fpn_layers\.3\.",
    "CLIP's projection of whole prompts": r"text_encoder\.(text_projection|projection)\.weight$",
    "semantic segmentation": r"mask_decoder\.semantic_projection\.",
    "frames without memory": r"tracker_model\.no_memory_(embedding|positional_encoding)$",
}
"""Weights of the model on which no output depends that is served, so that a file may lack them (SAM 3.1 has three
levels). They are zero then."""
_NOT_READ = {reason: re.compile(rule) for reason, rule in NOT_READ.items()}


@dataclass(frozen=True)
class Account:
    """What became of a file's weights.

    `used` is how many tensors the model was given, `dtypes` how many of each dtype the file had; `unused` counts the
    others by what they are for, `absent` those that the file lacks and nothing reads; `notes` are choices that were
    made, such as averaged weights. `stored` is the dtype that each weight has in the file.
    """

    used: int
    dtypes: dict[str, int]
    unused: dict[str, int] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stored: Mapping[str, torch.dtype] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, object]:
        """The same for a line of JSON."""
        told = ("used", "dtypes", "unused", "absent", "notes")
        return {name: getattr(self, name) for name in told}

    def sentences(self) -> list[str]:
        """The same for people."""
        dtypes = ", ".join(f"{count} in {dtype}" for dtype, count in self.dtypes.items())
        said = [*self.notes, f"{self.used} weights used ({dtypes})"]
        said += [f"{count} not used: {reason}" for reason, count in self.unused.items()]
        said += [f"{count} not in the file, and not needed: {reason}" for reason, count in self.absent.items()]
        return said


def balanced(
    model: Mapping[str, Tensor], weights: Iterable[Weight], unused: Mapping[str, int], notes: Iterable[str], file: str
) -> tuple[dict[str, Tensor], Account]:
    """The weights for `model` (its state, on any device) in its shapes and dtypes, and the account. Raises
    CheckpointError with everything that is wrong."""
    faults: dict[str, list[str]] = {}
    state: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    stored: dict[str, torch.dtype] = {}
    for weight in weights:
        fault = _fault(weight, model.get(weight.name), origins)
        if fault:
            faults.setdefault(fault[0], []).append(fault[1])
        else:
            state[weight.name] = weight.tensor.detach().to(model[weight.name].dtype)
            stored[weight.name] = weight.tensor.dtype
        origins.setdefault(weight.name, weight.origin)
    missing = [name for name in model if name not in origins]
    absent = Counter(reason for name in missing if (reason := not_read(name)))
    for name in missing:
        if not_read(name):
            state[name] = torch.zeros_like(model[name], device="cpu")
        else:
            faults.setdefault("are missing", []).append(name)
    if faults:
        raise CheckpointError(_refusal(faults, model, file))
    dtypes = Counter(str(dtype).removeprefix("torch.") for dtype in stored.values())
    return state, Account(len(origins), dict(dtypes), dict(unused), dict(absent), tuple(notes), stored)


def not_read(name: str) -> str | None:
    """What a weight of the model is for on which nothing depends that is served; None for all others."""
    return next((reason for reason, rule in _NOT_READ.items() if rule.match(name)), None)


def _fault(weight: Weight, wanted: Tensor | None, origins: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with a weight, and its name with what was found."""
    origin, tensor = weight.origin, weight.tensor
    if wanted is None:
        return "are not known", origin
    if weight.name in origins:
        return "are there twice", f"{origin} and {origins[weight.name]}"
    if tensor.shape != wanted.shape:
        return "have another shape", f"{origin} {_shape(tensor)} where the configuration says {_shape(wanted)}"
    if tensor.layout != torch.strided or tensor.is_meta:
        return "are sparse or without values", origin
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.element_size() < 2 < wanted.element_size():
        return "have a dtype that holds no weights", f"{origin} {tensor.dtype}"
    if not tensor.is_floating_point():
        return None
    if not torch.isfinite(tensor).all():
        return "hold NaN or infinity", origin
    if tensor.ndim > 1 and not not_read(weight.name) and not tensor.any():
        return "are all zero, as in a file that was not downloaded to its end", origin
    return None


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _refusal(faults: Mapping[str, list[str]], model: Mapping[str, Tensor], file: str) -> str:
    parts = "; ".join(f"{len(names)} weights {what}: {named(names)}" for what, names in faults.items())
    lacking = faults.get("are missing", [])
    text = {name for name in model if name.startswith("text_") and not not_read(name)}
    if set(lacking) == text:
        remedy = "put its text encoder beside it (text_encoder.safetensors), or save the checkpoint whole"
    elif faults.keys() == {"are missing"}:
        remedy = "download or save the checkpoint again, the file is incomplete"
    elif "have another shape" in faults:
        remedy = "the config.json beside the weights has to be the one that they were trained with"
    else:
        remedy = "pass the checkpoint as it was saved; for averaged weights, with --ema"
    return f"{file}: of the {len(model)} weights of the model {parts}; {remedy}"
