"""A model repository on disk: what it serves, on which engine, from which files; and the folder a server starts from.

A front model's configuration carries its variant, and the variant names the sub-models: so what is missing is known as
well. Nothing is loaded. Standard library only.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble import pbtxt
from ensemble.engines import runs_plans
from ensemble.pbtxt import ModelConfig
from ensemble.server.requirements import ServerError
from ensemble.spec import ENGINES, Variant, is_front_name

if TYPE_CHECKING:
    from ensemble.server.videos import VideoServed

MANIFEST = "manifest.json"
FRONT_SETTINGS = {
    "max_batch": "most frames that a front model takes at once",
    "front_instances": "front models side by side",
    "queue_delay_us": "microseconds that a frame waits for others to make a batch with",
}
"""Fields of a `Variant` that a server can change without another export."""
GPU_FRONTS = {"front_instances": 8, "queue_delay_us": 0}
CPU_FRONTS = {"front_instances": 2, "queue_delay_us": 0}
"""Front models in front of an engine model, where nobody asks for others. It makes batches of all that waits, so no
frame waits for others before; front models work side by side, which two cores do not do faster with more of them."""


@dataclass(frozen=True)
class Artifact:
    """One sub-model as it lies in the repository."""

    model: str
    folder: Path

    @cached_property
    def config(self) -> ModelConfig:
        return pbtxt.read(self.folder / "config.pbtxt")

    @property
    def engine(self) -> str:
        """One of `spec.ENGINES`; empty where no configuration says."""
        native = [engine.name for engine in ENGINES.values() if engine.backend == self.config.backend != "python"]
        return native[0] if native else self.config.parameters.get("engine", "")

    @property
    def on_gpu(self) -> bool:
        return self.config.on_gpu

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
    def tracker(self) -> tuple[Artifact, ...]:
        """The tracker's sub-models; none where the variant is for pictures alone."""
        return tuple(Artifact(m.name, self.folder.parent / m.name) for m in self.variant.tracker_parts)

    @property
    def missing(self) -> list[Artifact]:
        return [a for a in (*self.artifacts, *self.tracker) if not a.path.is_file()]

    @property
    def engine(self) -> str:
        """Of the sub-models that have a resolution; the text encoder is shared and may come from elsewhere."""
        return self.artifacts[0].engine

    @property
    def on_gpu(self) -> bool:
        return any(a.on_gpu for a in self.artifacts)

    @property
    def engines(self) -> dict[str, str]:
        """Of each sub-model by part."""
        return {m.part: a.engine for m, a in zip(self.variant.sub_models, self.artifacts, strict=True)}

    @property
    def tokenizer(self) -> Path:
        return self.folder.parent / self.variant.text_encoder.name / "1" / "tokenizer.json"

    @property
    def text_encoder_cpu(self) -> Artifact:
        """The text encoder's form for the CPU; it need not exist."""
        name = self.variant.text_encoder_cpu.name
        return Artifact(name, self.folder.parent / name)

    def with_text_encoder_on_cpu(self) -> Served:
        name = self.variant.text_encoder.name
        return replace(self, artifacts=tuple(self.text_encoder_cpu if a.model == name else a for a in self.artifacts))


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
    told = pbtxt.read(config).parameters.get("variant")
    if told is None:
        raise ServerError(f"{config} names no variant; write the repository again with sam3-export")
    try:
        return Variant.from_dict(json.loads(told))
    except (TypeError, ValueError) as error:
        raise ServerError(
            f"{config} names a variant that cannot be ({error}); write the repository again with sam3-export"
        ) from None


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


def check_engines(served: Sequence[Served], sub_models: bool = False) -> None:
    """Raises ServerError for an engine that only the container has, and for plans as models of Triton's own
    (`sub_models`): they share memory and a stream, which processes cannot."""
    for artifact in (a for one in served for a in one.artifacts):
        if sub_models and runs_plans(artifact.engine):
            raise ServerError(
                f"{artifact.model} is a plan, which runs in the engine model alone; leave out --sub-models"
            )
        if artifact.config.backend not in ("python", "") and not runs_plans(artifact.engine):
            raise ServerError(
                f"{artifact.model} is a {artifact.config.backend} model, which the embedded server cannot run;"
                " start it with docker compose up, or export for this server with sam3-export --engine onnxruntime"
            )


def suited(served: Sequence[Served], settings: Mapping[str, int]) -> list[Served]:
    """`adjusted` to what suits an engine model, where `settings` do not say otherwise."""
    return adjusted(served, {**(GPU_FRONTS if any(s.on_gpu for s in served) else CPU_FRONTS), **settings})


def lay_out(
    served: Sequence[Served],
    folder: Path,
    gpus: Sequence[int] = (),
    sub_models: bool = False,
    gpu_memory_mb: float | None = None,
    direct: bool = False,
    videos: Sequence[VideoServed] = (),
) -> Path:
    """The repository that the embedded server loads, in `folder`, which it returns: the front models, and the engine
    model that holds their sub-models on each of `gpus`, or on the CPU where none is named.

    With `sub_models` each sub-model is a Triton model of its own instead, and the front models call them. With `direct`
    the one front model that there is holds the sub-models itself. `videos` are video front models beside. Artifacts are
    linked, never copied.
    """
    root = folder / "repository"
    if direct:
        (one,) = served
        own = pbtxt.write_direct(one.variant, one.engines, gpus, root, gpu_memory_mb)
        _link(own / "1" / "tokenizer.json", one.tokenizer)
        _link_artifacts(own, one)
        return root
    for one in served:
        front = pbtxt.write(one.variant.front, one.variant, one.engine, root, engine_model=not sub_models)
        _link(front / "1" / "tokenizer.json", one.tokenizer)
        for model, artifact in zip(one.variant.sub_models, one.artifacts, strict=True):
            if sub_models:
                own = pbtxt.write(model, one.variant, artifact.engine, root)
                for file in artifact.path.parent.iterdir():
                    if file.suffix != ".py":
                        _link(own / "1" / file.name, file)
    if not sub_models:
        engines = {one.variant.front_name: (one.variant, one.engines) for one in served}
        told = {v.variant.front_name: (v.variant, v.engines, v.slots) for v in videos}
        engine = pbtxt.write_engine(engines, gpus, root, gpu_memory_mb, told)
        for one in served:
            _link_artifacts(engine, one)
        for video in videos:
            front = pbtxt.write_video(video.variant, video.detector.engine, root)
            _link(front / "1" / "tokenizer.json", video.detector.tokenizer)
            for name, artifact in video.artifacts:
                _link(engine / "1" / name, artifact.folder)
    return root


def _link_artifacts(engine: Path, served: Served) -> None:
    for model, artifact in zip(served.variant.sub_models, served.artifacts, strict=True):
        _link(engine / "1" / model.name, artifact.folder)


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target.resolve())


def container_view(served: Sequence[Served], folder: Path) -> Path:
    """A model repository in `folder` that holds links to these models alone, and configurations of its own for adjusted
    front models; returns it. Triton itself runs the sub-models."""
    root = folder / "repository"
    root.mkdir()
    for one in served:
        if one.variant != read_variant(one.folder / "config.pbtxt"):
            pbtxt.write(one.variant.front, one.variant, one.engine, root)
        else:
            _link(root / one.folder.name, one.folder)
        for artifact in one.artifacts:
            _link(root / artifact.model, artifact.folder)
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
    words.append(f"--checkpoint {shlex.quote(variant.checkpoint.name)}{' --video' if variant.tracker else ''}")
    if variant.queries != variant.checkpoint.num_queries:
        words.append(f"--queries {variant.queries}")
    if variant.precision != ENGINES[engine].precision:
        words.append(f"--precision {variant.precision}")
    for name in ("max_batch", "max_pairs", "max_boxes", "max_picks"):
        if getattr(variant, name) != getattr(usual, name):
            words.append(f"--{name.replace('_', '-')} {getattr(variant, name)}")
    return tuple(words)
