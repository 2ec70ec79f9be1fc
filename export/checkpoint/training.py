"""What a training wraps around weights: optimizer and epoch beside them, averages (EMA), prefixes of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from export.checkpoint.error import CheckpointError, named

PLAIN = ("model", "state_dict", "model_state_dict", "module", "net", "network", "weights", "params")
"""Entries of a training's file that hold the weights themselves."""
AVERAGED = (
    *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict"),
    *("ema_model_state_dict", "averaged_model", "swa_model", "shadow"),
)
"""Entries, and prefixes of names, that hold the exponential moving average of the weights."""
DEPTH = 3
"""How deep entries are looked into."""
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into names, wherever a module was wrapped."""
IN_FRONT = ("module.", "model.", "detector_model.", "detector.", "sam3_model.", "net.", "network.", "base_model.")
"""What parallel training, Lightning, PEFT and SAM3's video models put in front of names."""

Weights = dict[str, Tensor]


def choose(data: Any, ema: bool, file: str) -> tuple[Weights, list[str]]:
    """The weights in what a file held, averaged ones if `ema`, and a sentence about each choice that was made. Raises
    CheckpointError where there are none of that kind."""
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"{file}: expected a dictionary of weights, got {type(data).__name__}; save model.state_dict()"
        )
    sets = {path: dict(weights) for path, weights in _sets(data, "", DEPTH)}
    for path in list(sets):
        sets[path], averages = _split(sets[path])
        sets |= {f"{path}.{prefix}".lstrip("."): weights for prefix, weights in averages.items()}
        if not sets[path]:
            del sets[path]
    averaged = [path for path in sets if _is_average(path)]
    plain = [path for path in sets if path not in averaged]
    if ema and not averaged:
        shown = named(path or "the weights themselves" for path in plain) or named(map(str, data)) or "nothing"
        raise CheckpointError(
            f"{file}: expected averaged weights (EMA) with a name each, under one of {', '.join(AVERAGED[:3])}, found"
            f" {shown}; leave --ema out"
        )
    if not sets:
        shown = named(map(str, data), 6) or "nothing"
        raise CheckpointError(f"{file}: expected weights, found {shown}; pass the file that holds them")
    chosen = (averaged if ema or not plain else plain)[0]
    notes = []
    if chosen:
        kind = "averaged weights (EMA)" if chosen in averaged else "weights"
        others = [path or "the weights themselves" for path in sets if path != chosen]
        also = f"; not taken: {', '.join(others)}" if others else ""
        notes.append(f"took the {kind} under {chosen!r}{also}")
    elif averaged:
        notes.append(f"took the weights themselves; not taken: {', '.join(averaged)} (--ema takes them)")
    return sets[chosen], notes


def bare(name: str) -> str:
    """A weight's name without what a training put around it."""
    for part in INSIDE:
        name = name.replace(part, "")
    while name.startswith(IN_FRONT):
        name = name.split(".", 1)[1]
    return name


def _sets(data: Mapping[Any, Any], path: str, depth: int) -> list[tuple[str, Weights]]:
    """Dictionaries of tensors and the path to each; known entries first, then the dictionary itself."""
    found = []
    if depth:
        for entry in (*PLAIN, *AVERAGED):
            if isinstance(data.get(entry), Mapping):
                found += _sets(data[entry], f"{path}.{entry}".lstrip("."), depth - 1)
    if found:
        return found
    tensors = {name: tensor for name, tensor in data.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    return [(path, tensors)] if tensors else []


def _split(weights: Weights) -> tuple[Weights, dict[str, Weights]]:
    """Weights whose names begin with an average's prefix, apart from the others."""
    averages: dict[str, Weights] = {}
    rest: Weights = {}
    for name, tensor in weights.items():
        prefix, _, inner = name.partition(".")
        if prefix in AVERAGED and inner:
            averages.setdefault(prefix, {})[inner] = tensor
        else:
            rest[name] = tensor
    return rest, averages


def _is_average(path: str) -> bool:
    return any(part in AVERAGED for part in path.split("."))
