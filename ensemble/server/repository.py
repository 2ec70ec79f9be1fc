"""A model repository in; what it serves, on which engine, from which files and whether on a GPU, out. Nothing is
loaded. Standard library only.

A front model's configuration carries its variant, and the variant names the sub-models: so what is missing is known as
well.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ensemble import pbtxt
from ensemble.server.requirements import ServerError
from ensemble.spec import ENGINES, Variant, is_front_name

MANIFEST = "manifest.json"
FRONT_SETTINGS = {
    "max_batch": "most frames that a front model takes at once",
    "front_instances": "front models side by side",
    "queue_delay_us": "microseconds that a frame waits for others to make a batch with",
}
"""Fields of a `Variant` that a server can change without another export."""
_VARIANT = re.compile(r'key: "variant", value: { string_value: ("(?:[^"\\]|\\.)*")')
_ENGINE = re.compile(r'key: "engine", value: { string_value: "(\w+)"')


@dataclass(frozen=True)
class Artifact:
    """One sub-model as it lies in the repository."""

    model: str
    folder: Path

    @cached_property
    def config(self) -> str:
        """The text of `config.pbtxt`; empty where there is none."""
        path = self.folder / "config.pbtxt"
        return path.read_text() if path.is_file() else ""

    @cached_property
    def engine(self) -> str:
        """One of `spec.ENGINES`; empty where no configuration says."""
        if 'backend: "tensorrt"' in self.config:
            return "tensorrt"
        found = _ENGINE.search(self.config)
        return found[1] if found else ""

    @property
    def on_gpu(self) -> bool:
        return "kind: KIND_GPU" in self.config

    @property
    def path(self) -> Path:
        """Of the artifact itself; it need not exist."""
        return self.folder / "1" / (ENGINES[self.engine].artifact if self.engine else "model")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the export wrote about it; empty where there is nothing readable."""
        try:
            return json.loads((self.folder / MANIFEST).read_text())
        except (OSError, ValueError):
            return {}


@dataclass(frozen=True)
class Served:
    """One front model: its variant, its folder, and the sub-models that it calls."""

    variant: Variant
    folder: Path
    artifacts: tuple[Artifact, ...]

    @property
    def missing(self) -> list[Artifact]:
        return [a for a in self.artifacts if not a.path.is_file()]

    @property
    def engine(self) -> str:
        """Of the sub-models that have a resolution; the text encoder is shared and may come from elsewhere."""
        return self.artifacts[0].engine

    @property
    def on_gpu(self) -> bool:
        return any(a.on_gpu for a in self.artifacts)


def read(repository: Path) -> list[Served]:
    """Every front model, the largest resolution first. Raises ServerError for a front model whose configuration names
    no variant."""
    found = []
    for path in repository.glob("*/config.pbtxt"):
        if is_front_name(path.parent.name):
            variant = read_variant(path)
            models = tuple(Artifact(m.name, repository / m.name) for m in variant.sub_models)
            found.append(Served(variant, path.parent, models))
    return sorted(found, key=lambda served: -served.variant.resolution)


def read_variant(config: Path) -> Variant:
    """The variant in a front model's `config.pbtxt`. Raises ServerError where there is none, or one of another
    version."""
    match = _VARIANT.search(config.read_text())
    try:
        return Variant.from_dict(json.loads(json.loads(match[1]))) if match else _nothing(config)
    except (TypeError, ValueError) as error:
        raise ServerError(
            f"{config} names a variant that cannot be ({error}); write the repository again with sam3-export"
        ) from None


def _nothing(config: Path) -> Variant:
    raise ServerError(f"{config} names no variant; write the repository again with sam3-export")


def choose(served: Sequence[Served], resolutions: Sequence[int]) -> list[Served]:
    """Those with these resolutions. Raises ServerError with what there is for one that is not there."""
    have = {s.variant.resolution for s in served}
    unknown = [r for r in resolutions if r not in have]
    if unknown:
        raise ServerError(
            f"expected resolutions of this repository ({', '.join(map(str, sorted(have))) or 'it has none'}), got"
            f" {', '.join(map(str, unknown))}"
        )
    return [s for s in served if s.variant.resolution in resolutions]


def adjusted(served: Sequence[Served], settings: Mapping[str, int]) -> list[Served]:
    """These front models with other values of `FRONT_SETTINGS`, by name; what is not named stays as exported.

    Raises ServerError for a batch that the artifacts were not made for, and for what cannot be.
    """
    batch = settings.get("max_batch", 1)
    for one in served:
        if batch > one.variant.max_batch:
            raise ServerError(
                f"{one.variant.front_name}: expected batches of at most {one.variant.max_batch}, which its artifacts"
                f" were made for, got {batch}; export it with --max-batch {batch}"
            )
    try:
        return [replace(one, variant=replace(one.variant, **settings)) for one in served]  # type: ignore[arg-type]
    except ValueError as error:
        raise ServerError(str(error)) from None


def view(served: Sequence[Served], folder: Path) -> Path:
    """A model repository in `folder` that holds links to these models alone, and configurations of its own for adjusted
    front models; returns it."""
    root = folder / "repository"
    root.mkdir()
    for one in served:
        if one.variant != read_variant(one.folder / "config.pbtxt"):
            pbtxt.write(one.variant.front, one.variant, one.engine, root)
        else:
            (root / one.folder.name).symlink_to(one.folder.resolve())
        for model in (a.folder for a in one.artifacts):
            link = root / model.name
            if not link.is_symlink():
                link.symlink_to(model.resolve())
    return root


def build_command(served: Sequence[Served], repository: Path, force: bool) -> str:
    """The command that builds the artifacts of these front models (again, with `force`), one line for each set of equal
    settings."""
    lines: dict[tuple[str, ...], list[int]] = {}
    for one in served:
        lines.setdefault(_options(one, repository), []).append(one.variant.resolution)
    tail = " --force" if force else ""
    return "\n".join(
        f"{' '.join(head)} --resolution {' '.join(map(str, sizes))}{tail}" for head, sizes in lines.items()
    )


def _options(served: Served, repository: Path) -> tuple[str, ...]:
    variant, usual = served.variant, Variant()
    engine = served.engine or "onnxruntime"
    if engine == "tensorrt":  # plans are built in the container that serves them
        words = ["docker compose run --rm build"]
    else:
        words = [f"sam3-export --engine {engine} --repository {shlex.quote(str(repository))}"]
    words.append(f"--checkpoint {shlex.quote(variant.checkpoint.name)}")
    if variant.queries != variant.checkpoint.num_queries:
        words.append(f"--queries {variant.queries}")
    if variant.precision != ENGINES[engine].precision:
        words.append(f"--precision {variant.precision}")
    for name in ("max_batch", "max_pairs", "max_boxes", "max_picks"):
        if getattr(variant, name) != getattr(usual, name):
            words.append(f"--{name.replace('_', '-')} {getattr(variant, name)}")
    return tuple(words)
