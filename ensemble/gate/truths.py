"""Truths: what a checkpoint answers in fp32 on a few frames, as a file of a few megabytes beside the front model.

They hold the inputs of each sub-model and the outputs that transformers' model gives on them, so any engine's artifacts
can be measured by them where neither PyTorch nor the checkpoint is. Two things keep the file small, and change no
result: of large outputs `VALUES` values are kept, spread over the whole tensor; and the feature maps that decoder and
mask head are given are made from maps of p×p by `feature_maps`, here as in the export, where the model was given the
same. NumPy only.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.records import NUMPY_DTYPES
from ensemble.spec import Variant

Arrays = Mapping[str, np.ndarray]

FILE = "truths.npz"
VERSION = 1
VALUES = 1 << 16
"""Values kept of an output: its cosine needs no more, and a layer or a channel that is off shows in them."""
STEP = 2_654_435_761
"""A prime, larger than any tensor here: multiples of it, modulo the size, are different places all over the tensor."""
LEVELS = ("fpn_0", "fpn_1", "fpn_2")
TRACKER = "tracker/"
"""How the names of a tracker's arrays begin; `calls` is how many calls of its sub-models there are."""


class TruthsError(ValueError):
    """The file cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Truths:
    """What `read` finds: the variant, the hash of what they were made from, and the arrays by name.

    `pixel_values` and `input_ids` are inputs, `features/fpn_*` the small maps. Below `text/` and `boxes/` are the pairs
    of two samples, without and with exemplar boxes: their inputs, below `want/` their outputs, each as `keep` writes
    it. Below `tracker/` are the calls of a tracker's sub-models (`ensemble/gate/tracker.py`).
    """

    variant: Variant
    made_from: str
    arrays: Arrays

    def wanted(self, name: str) -> tuple[np.ndarray, float]:
        """The kept values of an output [K], in fp32, and the largest magnitude of all its values."""
        return self.arrays[f"{name}/values"], float(self.arrays[f"{name}/peak"])

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names start with that, by the rest of it."""
        return {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}


def places(size: int) -> np.ndarray:
    """Which values of a flattened tensor of that size are kept: int64, all different, in no order of the tensor's."""
    return np.arange(min(size, VALUES), dtype=np.int64) * STEP % size


def keep(output: np.ndarray) -> dict[str, np.ndarray]:
    """`values` and `peak` of one output, for the file."""
    flat = np.asarray(output, np.float32).reshape(-1)
    return {"values": flat[places(flat.size)], "peak": np.float32(np.abs(flat).max(initial=0.0))}


def chosen(output: np.ndarray) -> np.ndarray:
    """The values of an artifact's output that `keep` keeps of the truth's."""
    flat = output.reshape(-1)
    return flat[places(flat.size)]


def feature_maps(small: Arrays, images: int, levels: Sequence[str] = LEVELS) -> dict[str, np.ndarray]:
    """fp32 `fpn_0` [B,C,4p,4p], `fpn_1` [B,C,2p,2p] and `fpn_2` [B,C,p,p], or as they are called, from maps [1,C,p,p].

    Enlarged maps are multiplied by a pattern, so that neighbours differ and none can stand for another; every other
    image is mirrored, so that it matters which one a pair asks for.
    """
    maps = {}
    for name, factor in zip(levels, (4, 2, 1), strict=True):
        enlarged = small[name].astype(np.float32).repeat(factor, 2).repeat(factor, 3)
        if factor > 1:
            y, x = np.indices(enlarged.shape[2:])
            enlarged = enlarged * ((7 * x + 13 * y) % 4 * 0.25 + 0.5).astype(np.float32)
        rows = [enlarged[..., ::-1] if image % 2 else enlarged for image in range(images)]
        maps[name] = np.ascontiguousarray(np.concatenate(rows))
    return maps


def write(path: Path, variant: Variant, made_from: str, arrays: Arrays) -> None:
    """Writes the file at once or not at all."""
    about = json.dumps({"version": VERSION, "variant": variant.to_dict(), "made_from": made_from})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, about=np.frombuffer(about.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def read(path: Path) -> Truths:
    """Raises FileNotFoundError where there are none, TruthsError for a file that is no whole one of this version."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']}")
        return Truths(Variant.from_dict(about["variant"]), about["made_from"], arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # of many kinds: zlib's, zipfile's, NumPy's
        raise TruthsError(
            f"expected truths of version {VERSION} in {path}, got {error or type(error).__name__}; write the repository"
            " again with sam3-export"
        ) from error


def holds_tracker(names: Container[str]) -> bool:
    """Whether among these arrays are those that a tracker's sub-models are measured by."""
    return f"{TRACKER}calls" in names


def made_from(path: Path, tracker: bool = False) -> str | None:
    """What the truths there were made from; None where there are none that can be read, or with `tracker` none of
    one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about: dict[str, Any] = json.loads(file["about"].tobytes())
            if tracker and not holds_tracker(file.files):
                return None
        return about["made_from"] if about["version"] == VERSION else None
    except Exception:
        return None


def typed(variant: Variant, part: str, feed: Arrays) -> dict[str, np.ndarray]:
    """The inputs of a sub-model in its record's order and dtypes."""
    return {
        tensor.name: np.ascontiguousarray(feed[tensor.name], NUMPY_DTYPES[tensor.dtype])
        for tensor in getattr(variant, part).inputs
    }
