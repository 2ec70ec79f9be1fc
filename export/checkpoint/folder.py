"""A checkpoint's folder: which of its files are the weights, and what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.checkpoint.error import CheckpointError, named
from export.checkpoint.files import AGAIN

STEMS = ("model.safetensors", "pytorch_model.bin")
"""The names that transformers gives to weights, in the order in which it looks for them."""
TEXT_ENCODER = "text_encoder.safetensors"
"""The text encoder's weights, where they were written apart."""
TORCH = (".pt", ".pth", ".ckpt", ".bin")
STATES = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state)")
"""What a training leaves beside its weights."""
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.(?:safetensors|bin)$")


@dataclass(frozen=True)
class Found:
    """The files of a checkpoint: its `weights`, of each weight that an index lists the name of its file, and a `note`
    where they are not those that the folder should have."""

    weights: tuple[Path, ...]
    listed: dict[str, str] = field(default_factory=dict)
    note: str = ""


def find_weights(folder: Path) -> Found:
    """The weight files of a folder. Raises CheckpointError where there are none, where an index names files that are
    not there, or where it is not clear which are meant."""
    found = _find(folder)
    apart = folder / TEXT_ENCODER
    if apart.is_file() and apart not in found.weights:
        return replace(found, weights=(*found.weights, apart))
    return found


def _find(folder: Path) -> Found:
    for stem in STEMS:
        if (folder / stem).is_file():
            return Found((folder / stem,))
        if (folder / f"{stem}.index.json").is_file():
            return _indexed(folder / f"{stem}.index.json")
    files = sorted(p for p in folder.iterdir() if p.is_file() and not STATES.match(p.name) and p.name != TEXT_ENCODER)
    for kind in ((".safetensors",), TORCH):
        found = [p for p in files if p.suffix in kind]
        shards = [p for p in found if SHARD.search(p.name)]
        if shards:
            return Found(tuple(_all_shards(folder, shards)))
        if len(found) == 1:
            _refuse_adapter(found[0])
            usual = found[0].suffix == ".safetensors"
            note = "" if usual else f"{folder} has no *.safetensors or pytorch_model.bin, so {found[0].name} was read"
            return Found((found[0],), note=note)
        if found:
            raise CheckpointError(
                f"{folder}: expected one file of weights, found {named(p.name for p in found)}; pass the file itself"
            )
    shown = named((p.name for p in folder.iterdir()), 6) or "nothing"
    raise CheckpointError(
        f"expected config.json and *.safetensors (or pytorch_model.bin, or Meta's sam3.pt) in {folder}, found {shown};"
        " pass the folder that save_pretrained wrote"
    )


def read_json(path: Path) -> Any:
    """The file's content. Raises CheckpointError where it is no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON, cannot read it ({error}); {AGAIN}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}; {AGAIN}")
    return data


def _indexed(index: Path) -> Found:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(f"{index}: expected a weight_map from weights to files, found none; {AGAIN}")
    names = sorted(set(listed.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} names files outside of its folder ({named(outside)}); {AGAIN}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(names)} files of weights are missing ({named(missing)}); {AGAIN}"
        )
    return Found(tuple(index.parent / name for name in names), listed)


def _all_shards(folder: Path, shards: list[Path]) -> list[Path]:
    """The shards themselves, if their numbers say that none is missing."""
    numbers = {match.groups() for p in shards if (match := SHARD.search(p.name))}
    count = max(int(of) for _, of in numbers)
    missing = count - len({number for number, _ in numbers})
    if missing:
        raise CheckpointError(f"{folder}: {missing} of {count} files of weights are missing; {AGAIN}")
    return shards


def _refuse_adapter(path: Path) -> None:
    if path.name.startswith("adapter_model"):
        raise CheckpointError(
            f"{path} is an adapter (LoRA) without the weights that it adapts; merge it first: merge_and_unload(), then"
            " save_pretrained"
        )
