"""The check before a server starts: whether a repository can be served on the GPU that it is about to be loaded on.

Three things end a start half way, each with a message that names a symptom: an artifact that was never built, one that
was built for another GPU or another TensorRT, and too little memory. All are known before: from the files, from their
manifests, and from the model that `sam3-perf capacity` uses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemble.server import gpu
from ensemble.server.memory import DEFAULT_POOL_MB, footprint_of
from ensemble.server.needs import Pool, least_need_of, need_of, what_fits
from ensemble.server.plans_check import ENGINE as PLANS
from ensemble.server.plans_check import check_plans
from ensemble.server.repository import Artifact, Served, build_command
from ensemble.server.requirements import ServerError, check_onnxruntime
from ensemble.server.videos import VideoServed
from ensemble.spec import MB

log = logging.getLogger(__name__)
POOL_FLAG = "--cuda-memory-pool-byte-size="
"""Followed by a GPU's number, as CUDA counts here, a colon and bytes."""
TEXT_ENCODER = ("auto", "cpu", "gpu")
"""Where the text encoder of a server on a GPU may run."""


@dataclass(frozen=True, slots=True)
class Host:
    """What the models are going to run on: the one GPU, if there is one. A stated amount of memory, in MB, is taken in
    place of what is free on it. `videos` are served beside the models for pictures."""

    card: gpu.Gpu | None
    tensorrt: str | None = None
    stated_mb: float | None = None
    videos: tuple[VideoServed, ...] = ()

    @classmethod
    def here(cls, stated_mb: float | None = None) -> Host:
        return cls(gpu.serving(), gpu.tensorrt_version(), stated_mb)


def check(repository: Path, served: Sequence[Served], host: Host, pool: Pool | None) -> None:
    """Raises ServerError where these front models cannot be served on `host`; what could not be looked at is a
    warning."""
    check_built(repository, served)
    placed = [s for s in served if s.on_gpu]
    if not placed:
        return
    called = [*(a for s in placed for a in s.artifacts), *(a for v in host.videos for a in v.own)]
    check_plans(called, host.card)
    if host.card:
        check_built_for(repository, placed, host.card, host.tensorrt)
    check_memory(placed, host, pool)


def report(
    served: Sequence[Served],
    cards: Mapping[int, gpu.Gpu | None],
    pool: Pool | None,
    videos: Sequence[VideoServed] = (),
) -> dict[str, Any]:
    """What is served on what, and the memory that it is reckoned to take: `lines` for people, the rest for programs."""
    models = [
        {
            "model": s.variant.front_name,
            "engine": s.engine,
            "max_batch": s.variant.max_batch,
            "on_gpu": s.on_gpu,
            "text_encoder_on_gpu": s.artifacts[1].on_gpu,
        }
        for s in served
    ]
    lines = [f"{m['model']}: {m['engine']}, batches of up to {m['max_batch']} frames" for m in models]
    lines += ["the text encoder runs on the CPU" for m in models[:1] if m["on_gpu"] and not m["text_encoder_on_gpu"]]
    placed = [s for s in served if s.on_gpu]
    for video in videos:
        objects = f"up to {video.slots:,} objects of all videos at a time"
        lines.append(f"{video.variant.front_name}: {objects}, {video.bank_mb:,.0f} MB")
    needed = need_of(placed, pool, videos) if placed else None
    found = []
    for number, card in cards.items():
        free = card.free_mb if card else None
        found.append({"gpu": number, "name": card.name if card else None, "free_mb": free})
        what = f"{card.name}, {card.free_mb:,.0f} of {card.total_mb:,.0f} MB free" if card else "NVML shows none here"
        lines.append(f"GPU {number}: {what}; needed, modelled: {needed}")
    if not cards:
        lines.append("on the CPU")
    return {"models": models, "gpus": found, "needed_mb": round(needed.total) if needed else 0, "lines": lines}


def check_built(repository: Path, served: Sequence[Served]) -> None:
    """Raises ServerError, with the command that builds them, where artifacts are missing."""
    wanting = [s for s in served if s.missing]
    if wanting:
        first = wanting[0].missing[0]
        names = ", ".join(dict.fromkeys(a.model for s in wanting for a in s.missing))
        raise ServerError(
            f"expected {first.path}, found no such file; not built yet: {names}; build"
            f" with\n{build_command(wanting, repository, force=False)}"
        )


def check_built_for(repository: Path, served: Sequence[Served], card: gpu.Gpu, tensorrt: str | None) -> None:
    """Raises ServerError, with the command that builds again, where an artifact was made for another GPU or another
    TensorRT."""
    wrong: dict[str, str] = {}
    foreign, untold = [], []
    for one in served:
        for artifact in (a for a in one.artifacts if a.on_gpu and a.engine != PLANS):
            made = artifact.manifest.get("built_for")
            if not made:
                untold.append(artifact.model)
            elif differs(artifact, made, card, tensorrt):
                wrong[artifact.model] = _version(artifact, made)
                foreign.append(one)
    if untold:
        log.warning(
            "not compared with this GPU, since their manifests do not say what they were built for:"
            f" {', '.join(dict.fromkeys(untold))}"
        )
    engines = {a.engine for s in served for a in s.artifacts}
    if "tensorrt" in engines and tensorrt is None:
        log.warning("not compared with this TensorRT, since its library (libnvinfer) cannot be loaded here")
    if wrong:
        have = (
            f"{f'TensorRT {tensorrt} on ' if tensorrt and 'tensorrt' in engines else ''}{card.name} (compute capability"
            f" {card.compute_capability})"
        )
        found = "; ".join(f"{model} was built for {what}" for model, what in wrong.items())
        again = build_command(list(dict.fromkeys(foreign)), repository, force=True)
        raise ServerError(f"expected artifacts for {have}, got others: {found}. Build them again here with\n{again}")


def differs(artifact: Artifact, made: dict[str, Any], card: gpu.Gpu, tensorrt: str | None) -> bool:
    """Whether an artifact cannot be trusted on this GPU. A package holds kernels for a compute capability, a plan is
    bound to the very GPU and TensorRT."""
    if made.get("compute_capability", "unknown") not in ("unknown", card.compute_capability):
        return True
    if artifact.engine != "tensorrt":
        return False
    name = made.get("gpu", "unknown").split(" MIG ")[0]  # a slice has its GPU's kernels
    other_gpu = name not in ("unknown", card.name.split(" MIG ")[0])
    return other_gpu or bool(tensorrt and "tensorrt" in made and _three(made["tensorrt"]) != _three(tensorrt))


def _three(version: str) -> list[str]:
    """Major, minor and patch; the library does not tell its build number."""
    return version.split(".")[:3]


def _version(artifact: Artifact, made: dict[str, Any]) -> str:
    start = f"TensorRT {made['tensorrt']} on " if artifact.engine == "tensorrt" and "tensorrt" in made else ""
    return f"{start}{made.get('gpu', 'an unnamed GPU')} ({made.get('compute_capability', 'unknown')})"


def check_memory(served: Sequence[Served], host: Host, pool: Pool | None) -> None:
    """Raises ServerError with the figures, and with what does fit, where the models need more than is free."""
    if host.stated_mb is not None:
        free, have = host.stated_mb, f"the GPU has {host.stated_mb:,.0f} MB, as stated"
    elif card := host.card:
        free, have = card.free_mb, f"{card.name} has {card.total_mb:,.0f} MB, {card.free_mb:,.0f} of them free"
    else:
        log.warning("memory is not checked: the models are placed on a GPU, and NVML shows none here")
        return
    wanted = need_of(served, pool, host.videos)
    if wanted.total <= free:
        return
    if pool is None and least_need_of(served, host.videos).total <= free:
        log.warning("a full load needs %s, modelled; %s: larger batches are split, which costs time", wanted, have)
        return
    names = ", ".join(s.variant.front_name for s in served)
    beside = wanted.total - need_of(served, pool).total
    if beside:
        have = f"{have}; videos take {beside:,.0f} MB of them (--video-memory)"
    fits = f"{what_fits(served, free - beside, pool)}.{_without_text_encoder(served, host, free, pool)}"
    raise ServerError(
        f"{names}: needs {wanted}, modelled ({footprint_of(served[0].engine, pool is not None).source}); {have}."
        f" {fits} To start all the same, state another amount: --gpu-memory, or SAM3_GPU_MEMORY_MB in the"
        " container"
    )


def _without_text_encoder(served: Sequence[Served], host: Host, free_mb: float, pool: Pool | None) -> str:
    """A sentence where the server would start with its text encoder on the CPU."""
    if pool is not None or not all(s.artifacts[1].on_gpu for s in served):
        return ""
    lighter = [replace(s, artifacts=(s.artifacts[0], *s.artifacts[2:])) for s in served]
    least = least_need_of(lighter, host.videos).total
    return f" With --text-encoder cpu it starts: that needs {least:,.0f} MB at least." if least <= free_mb else ""


def place_text_encoder(
    served: Sequence[Served],
    where: str,
    cards: Mapping[int, gpu.Gpu | None],
    stated_mb: float | None,
    videos: Sequence[VideoServed] = (),
) -> list[Served]:
    """These front models with their text encoder on the CPU, or where it is: `where` is one of `TEXT_ENCODER`. A name
    is encoded once, so its time hardly counts; its weights are there all the time.

    `auto` takes it off GPUs that a full load would not fit on with it. Raises ServerError where it was not exported for
    the CPU and "cpu" is asked for.
    """
    placed = [s for s in served if s.on_gpu]
    if where == "gpu" or not placed:
        return list(served)
    if where == "auto":
        free = [card.free_mb for card in cards.values() if card] if stated_mb is None else [stated_mb]
        wanted = need_of(placed, None, videos)
        there = all(s.text_encoder_cpu.path.is_file() for s in placed)
        if not there or not free or wanted.total <= min(free):
            return list(served)
        log.info(
            "the text encoder runs on the CPU: with it a full load needs %s, modelled, and there are %s MB; a new name"
            " takes some hundred milliseconds, once",
            wanted,
            f"{min(free):,.0f}",
        )
    missing = [s for s in placed if not s.text_encoder_cpu.path.is_file()]
    if missing:
        raise ServerError(
            f"expected the text encoder for the CPU at {missing[0].text_encoder_cpu.path}, found no such file; export"
            f" again with\n{build_command(missing, missing[0].folder.parent, force=False)}"
        )
    check_onnxruntime()
    return [s.with_text_encoder_on_cpu() if s.on_gpu else s for s in served]


def stated_pool_mb(arguments: Sequence[str]) -> float | None:
    """The first GPU's pool in tritonserver's arguments, the last word of several; None where there is none, which means
    `DEFAULT_POOL_MB`."""
    flag = f"{POOL_FLAG}0:"
    sizes = [int(word.removeprefix(flag)) for word in arguments if word.startswith(flag)]
    return sizes[-1] / MB if sizes else None


def fixed_pool(arguments: Sequence[str]) -> Pool:
    """What those arguments reserve, whatever is served."""
    megabytes = stated_pool_mb(arguments)
    return lambda variants: DEFAULT_POOL_MB if megabytes is None else megabytes
