"""Staged files, their manifests and a variant's configurations go in, folders of a Triton model repository come out;
and what a folder holds now, again.

The one place that knows how a model's folder is laid out. A manifest names its files' hashes and comes last, so a
folder is never current before it is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble import pbtxt
from ensemble.spec import Variant

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
    seconds: float  # that building took, now or then
    cosine: float  # least of its outputs
    relative_error: float  # largest of its outputs

    @classmethod
    def at(cls, folder: Path, kept: bool) -> Written:
        """What the manifest in `folder` tells; `kept` says that this run did not build it."""
        data = json.loads((folder / MANIFEST).read_text())
        outputs = data["gate"]["outputs"].values()
        return cls(
            model=data["model"],
            artifact=f"{folder.name}/{VERSION}/{data['artifact']}",
            megabytes=round(data["bytes"] / 1e6, 1),
            state="kept" if kept else "built",
            seconds=data["build_seconds"],
            cosine=min(o["cosine"] for o in outputs),
            relative_error=max(o["relative_error"] for o in outputs),
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
    """Moves the staged files into the model's folder; the manifest comes last, so a folder is never current before it
    is whole."""
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for path in sorted((staged / VERSION).iterdir()):
        files[path.name] = file_sha256(path)
        shutil.move(
            path, folder / VERSION / path.name
        )  # a rename, or a copy where the repository is a mount of its own
    size = sum((folder / VERSION / name).stat().st_size for name in files)
    (folder / MANIFEST).write_text(json.dumps({**data, "bytes": size, "files": files}, indent=2) + "\n")


def write_configurations(variant: Variant, engine: str, root: Path) -> list[Path]:
    """Writes `config.pbtxt` (and `1/model.py` where the python backend runs the model) of the five sub-models and the
    front, whose configurations it returns; needs no checkpoint."""
    return [
        pbtxt.write(model, variant, engine, root) / "config.pbtxt" for model in (*variant.sub_models, variant.front)
    ]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
