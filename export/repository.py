"""The folders of a Triton model repository: how one is written, and what it holds.

This is the one place that knows how a model's folder is laid out. A manifest names the hashes of its files and is
written last, so that a folder is never current before it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble import pbtxt
from ensemble.spec import MB, Variant, find_engine

MANIFEST = "manifest.json"
VERSION = "1"
"""Triton's version folder."""


@dataclass(frozen=True, slots=True)
class Written:
    """One artifact of the repository, for the table and the JSON line."""

    model: str
    artifact: str
    megabytes: float
    state: str  # "built" or "kept"
    seconds: float  # that building took, in this run or the one that built it
    cosine: float | None  # the lowest of its outputs; None where the gate has not run
    relative_error: float | None  # the highest of its outputs

    @classmethod
    def at(cls, folder: Path, kept: bool) -> Written:
        """The entry of the artifact in `folder`, by its manifest; `kept` says that this run did not build it."""
        data = json.loads((folder / MANIFEST).read_text())
        outputs = data["gate"]["outputs"].values() if data["gate"] else ()
        return cls(
            model=data["model"],
            artifact=f"{folder.name}/{VERSION}/{data['artifact']}",
            megabytes=round(data["bytes"] / MB, 1),
            state="kept" if kept else "built",
            seconds=data["build_seconds"],
            cosine=min((o["cosine"] for o in outputs), default=None),
            relative_error=max((o["relative_error"] for o in outputs), default=None),
        )


def is_current(folder: Path, recipe: str) -> bool:
    """Whether the folder's manifest names this recipe and its files are the ones that the manifest names."""
    try:
        data = json.loads((folder / MANIFEST).read_text())
        return data["recipe"] == recipe and all(
            file_sha256(folder / VERSION / name) == digest for name, digest in data["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def publish(staged: Path, folder: Path, data: dict[str, Any]) -> None:
    """Moves the staged files into the model's folder and writes the manifest `data` beside them."""
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for path in sorted((staged / VERSION).iterdir()):
        files[path.name] = file_sha256(path)
        shutil.move(path, folder / VERSION / path.name)  # a copy where the repository is a mount of its own
    size = sum((folder / VERSION / name).stat().st_size for name in files)
    (folder / MANIFEST).write_text(json.dumps({**data, "bytes": size, "files": files}, indent=2) + "\n")


def write_configurations(variant: Variant, engine: str, root: Path) -> list[Path]:
    """Writes `config.pbtxt` (and `1/model.py` where the python backend runs the model) of the five sub-models, the
    tracker's parts where the variant has one, and the front model. Returns the paths of the configurations; needs no
    checkpoint."""
    models = [(model, engine) for model in (*variant.sub_models, *variant.tracker_parts, variant.front)]
    if find_engine(engine).shares_gpu:
        models.append((variant.text_encoder_cpu, "onnxruntime"))
    return [pbtxt.write(model, variant, runner, root) / "config.pbtxt" for model, runner in models]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
