"""Which resolution for these cameras on this GPU: a `Recommendation` a resolution, with its reasons.

Every figure carries its basis: measured here, measured elsewhere (and where), or modelled (and from what). A resolution
is rejected only with figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from ensemble.server.memory import MB, ONE_PROCESS, PLANS_PROCESS, footprint_of, pool_mb, score_bytes
from ensemble.spec import MAX_CLASSES, RESOLUTIONS, Checkpoint, Variant, check_resolution
from perf.capacity.calibrate import Calibration
from perf.capacity.evidence import Evidence, fp8_share, packages_mb
from perf.capacity.published import GUIDE, PLAN_BATCH, Measurement
from perf.tables import counted

LEAST_PATCHES = 1.0
"""Patches that an object's narrower side must cover after the stretch. Below one patch an object shares its token with
others; from two on it has a token of its own wherever it lies. COCO's small objects (up to 3.6 patches at 1008, 2.3 at
644) lose two thirds of their AP between the two.
"""
COMFORTABLE_PATCHES = 2.0
FPS_TOLERANCE = 0.02
"""A rate this much below the wanted one still counts: measurements repeat no better."""
GB = 1024
"""Megabytes in a gigabyte."""
HERE, ELSEWHERE, ANOTHER, MODELLED = (
    "measured here",
    "measured elsewhere",
    "measured with another pipeline",
    "modelled",
)

PRECISIONS = ("fp16", "fp8")
FP8 = "fp8 as much faster than fp16 as eight cameras with four classes were on one NVIDIA H200"
TEXT_ENCODER_ON_CPU = "the text encoder is on the CPU then, where sam3-serve puts it by itself"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What is asked for. `object_pixels` is the narrower side of the smallest object, in the camera's frame."""

    cameras: int
    memory_mb: float
    classes: int = 4
    fps: float = 1.0
    object_pixels: float = 0.0
    frame: tuple[int, int] = (1920, 1080)  # width, height
    resolutions: tuple[int, ...] = RESOLUTIONS
    prefer: str = "quality"
    engine: str = ""  # whose memory is reckoned with; empty: what the evidence measured
    precision: str = "fp16"  # or fp8: modelled where the evidence is of the other

    def __post_init__(self) -> None:
        if self.cameras < 1:
            raise ValueError(f"cameras must be at least 1, got {self.cameras}")
        if not 1 <= self.classes <= MAX_CLASSES:
            raise ValueError(f"classes must be 1 to {MAX_CLASSES} (what one request may hold), got {self.classes}")
        if not self.fps > 0:
            raise ValueError(f"fps is frames a second of each camera and must be above 0, got {self.fps:g}")
        if not self.memory_mb > 0:
            raise ValueError(f"memory must be above 0, got {self.memory_mb:g} MB; write for example 8GB")
        if self.object_pixels < 0 or min(self.frame) < 1:
            raise ValueError(
                f"object pixels and the frame's size must be positive, got {self.object_pixels:g} and"
                f" {self.frame[0]}x{self.frame[1]}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for resolution in self.resolutions:
            check_resolution(resolution)

    def patches(self, resolution: int) -> float:
        """Patches that the smallest object covers on the side that the stretch to a square shrinks most."""
        return self.object_pixels * resolution / max(self.frame) / 14


@dataclass(frozen=True, slots=True)
class Figure:
    value: float
    basis: str
    where: str = ""
    note: str = ""


@dataclass(slots=True)
class Recommendation:
    """One resolution: figures, and why it will not do (empty: it will)."""

    resolution: int
    batch: int
    fps_per_camera: Figure
    p95_ms: Figure
    memory_mb: Figure
    object_patches: float
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def basis(self) -> str:
        """The weakest of its figures' bases."""
        return max(
            (self.fps_per_camera, self.memory_mb), key=lambda f: (HERE, ELSEWHERE, ANOTHER, MODELLED).index(f.basis)
        ).basis


def recommend(wanted: Requirements, evidence: Sequence[Evidence]) -> list[Recommendation]:
    """A recommendation a resolution, the best first. `evidence` in order of preference; the first that has memory
    figures gives those."""
    found = [_recommendation(wanted, resolution, evidence) for resolution in dict.fromkeys(wanted.resolutions)]
    quality = wanted.prefer == "quality"
    return sorted(found, key=lambda o: (bool(o.reasons), -o.resolution if quality else -o.fps_per_camera.value))


def _recommendation(wanted: Requirements, resolution: int, evidence: Sequence[Evidence]) -> Recommendation:
    fps, p95 = _speed(wanted, resolution, evidence[0])
    if "fp8" in (wanted.precision, evidence[0].precision) and wanted.precision != evidence[0].precision:
        share = fp8_share(resolution) if wanted.precision == "fp8" else 1 / fp8_share(resolution)
        fps = Figure(fps.value / share, MODELLED, f"{fps.where}; {FP8}")
        p95 = Figure(p95.value * share, MODELLED, f"{p95.where}; {FP8}")
    memory = _memory(wanted, resolution, evidence)
    choice = Recommendation(resolution, min(wanted.cameras, PLAN_BATCH), fps, p95, memory, wanted.patches(resolution))
    many = counted(wanted.cameras, "camera")
    if memory.note:
        choice.notes.append(memory.note)
    ours = ""
    if GUIDE in memory.where:
        own = _packages_memory(wanted, resolution, evidence[0])
        ours = f"this server with compiled packages needs {own.value / GB:.1f} GB, modelled"
        ours += f", {own.note}" if own.note else ""
        choice.notes.append(f"the memory is another pipeline's; {ours}")
    if memory.value > wanted.memory_mb:
        choice.reasons.append(
            f"{resolution} needs {memory.value / GB:.1f} GB for {many}, you have {wanted.memory_mb / GB:.3g}"
            f"{f' (another pipeline; {ours})' if ours else f' ({memory.note})' if memory.note else ''}"
        )
    if fps.value < wanted.fps * (1 - FPS_TOLERANCE):
        choice.reasons.append(
            f"{resolution} gives each of {many} {fps.value:.2g} frames a second, you want {wanted.fps:g}"
        )
    if memory.basis == MODELLED and memory.where not in (ONE_PROCESS.source, PLANS_PROCESS.source):
        extra = (score_bytes(resolution, choice.batch, fused=False) - score_bytes(resolution, choice.batch)) / MB
        if extra:
            choice.notes.append(
                f"memory is modelled with fused attention; where the engine has none, {resolution} needs"
                f" {(memory.value + extra) / GB:.1f} GB"
            )
    if wanted.object_pixels and choice.object_patches < LEAST_PATCHES - 1e-9:
        choice.reasons.append(
            f"an object of {wanted.object_pixels:g} pixels covers {choice.object_patches:.2f} patches at {resolution}, "
            f"below {LEAST_PATCHES:g} it is not seen reliably"
        )
    elif wanted.object_pixels and choice.object_patches < COMFORTABLE_PATCHES:
        choice.notes.append(
            f"the smallest object covers {choice.object_patches:.1f} patches at {resolution}: expect misses,"
            f" {COMFORTABLE_PATCHES:g} are comfortable"
        )
    return choice


def _speed(wanted: Requirements, resolution: int, evidence: Evidence) -> tuple[Figure, Figure]:
    """Frames a second per camera and p95 of a round trip in milliseconds."""
    sample = evidence.find(resolution, wanted.cameras, wanted.classes)
    if sample:
        basis, where = _basis(evidence, sample), sample.where
        fps = Figure(1e3 / sample.ms_per_frame / wanted.cameras, basis, where)
        return fps, Figure(sample.p95_ms, basis, where) if sample.p95_ms else Figure(sample.ms, basis, where)
    calibration = evidence.calibration()
    batch = min(wanted.cameras, PLAN_BATCH)
    ms = calibration.ms_per_frame(resolution, batch, wanted.classes)
    where = f"calibrated by {calibration.where}"
    return (
        Figure(1e3 / ms / wanted.cameras, MODELLED, where),
        Figure(ms * wanted.cameras * calibration.p95_ratio, MODELLED, where),
    )


def _basis(source: Evidence, sample: Measurement) -> str:
    if sample.here:
        return HERE
    return ELSEWHERE if source.own else ANOTHER


def _memory(wanted: Requirements, resolution: int, evidence: Sequence[Evidence]) -> Figure:
    if wanted.engine or "fp8" in (wanted.precision, evidence[0].precision):
        return _packages_memory(wanted, resolution, evidence[0])
    for source in evidence:
        if source.architecture != evidence[0].architecture:
            continue
        sample = source.find(resolution, wanted.cameras, wanted.classes)
        if sample and sample.memory_mb:
            return Figure(sample.memory_mb, _basis(source, sample), sample.where)
        if source.packages:
            return _packages_memory(wanted, resolution, source)
        batch = min(wanted.cameras, PLAN_BATCH)
        calibration = source.calibration()
        memory = calibration.memory_mb(resolution, batch, wanted.classes)
        if memory is not None:
            checkpoint = Checkpoint(hidden_size=source.architecture.fpn, num_queries=source.architecture.queries)
            pool = pool_mb([Variant(resolution, queries=checkpoint.num_queries, checkpoint=checkpoint)])
            return Figure(memory + pool, MODELLED, f"calibrated by {calibration.where}")
    raise ValueError(
        f"{evidence[0].name} has no GPU memory figures, and no other measurement of the same model has; sweep on the"
        " GPU, or leave it out to decide by the published table"
    )


def _packages_memory(wanted: Requirements, resolution: int, evidence: Evidence) -> Figure:
    """Of this server, which takes its text encoder off a GPU that has no room for it."""
    load = evidence.architecture, resolution, min(wanted.cameras, PLAN_BATCH), wanted.classes
    engine = wanted.engine or "aoti"
    need = partial(packages_mb, *load, engine=engine, precision=wanted.precision)
    megabytes, where = need(), footprint_of(engine, model_each=False).source
    if megabytes <= wanted.memory_mb:
        return Figure(megabytes, MODELLED, where)
    return Figure(need(text_encoder=False), MODELLED, where, TEXT_ENCODER_ON_CPU)


def what_next(wanted: Requirements, rejected: Sequence[Recommendation], calibration: Calibration) -> str:
    """One sentence where no resolution will do: what the nearest one can."""
    fits = [o for o in rejected if o.memory_mb.value <= wanted.memory_mb]
    if not fits:
        least = min(rejected, key=lambda o: o.memory_mb.value)
        return (
            f"the least that works is {least.memory_mb.value / GB:.1f} GB, for {least.resolution}; take a larger GPU"
            " or fewer cameras at once"
        )
    seen = [o for o in fits if not wanted.object_pixels or o.object_patches >= LEAST_PATCHES]
    if not seen:
        largest = max(fits, key=lambda o: o.resolution)
        pixels = math.ceil(LEAST_PATCHES * 14 * max(wanted.frame) / largest.resolution)
        return (
            f"{largest.resolution}, the largest that fits, sees objects from {pixels} pixels on; crop the frame, move"
            " the camera closer or take a larger GPU"
        )
    fastest = max(seen, key=lambda o: o.fps_per_camera.value)
    total = fastest.fps_per_camera.value * wanted.cameras
    cameras = math.floor(total * (1 + FPS_TOLERANCE) / wanted.fps)
    gpus = math.ceil(wanted.cameras * wanted.fps / (total * (1 + FPS_TOLERANCE)))
    enough = (
        f"{cameras} cameras at {wanted.fps:g} frames a second"
        if cameras
        else f"one camera at {total:.2g} frames a second"
    )
    return (
        f"at {fastest.resolution} one such GPU is enough for {enough}; {wanted.cameras} cameras need {gpus} of them, or"
        " fewer frames a second"
    )


def delay_us(wanted: Requirements, choice: Recommendation) -> int:
    """How long the dynamic batcher should wait: not at all for one camera, else a tenth of the time between two frames,
    1 to 5 ms."""
    return 0 if wanted.cameras == 1 else round(min(5000, max(1000, 1e5 / (wanted.fps * wanted.cameras) * choice.batch)))
