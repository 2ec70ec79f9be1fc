"""Which resolution for these cameras on this GPU: a `Requirements` and evidence go in, an `Recommendation` per resolution with its
reasons comes out.

Every figure carries its basis: measured here, measured elsewhere (and where), or modelled (and from what). A resolution
is rejected only with figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ensemble.server.memory import MB, pool_mb, score_bytes
from ensemble.spec import MAX_CLASSES, RESOLUTIONS, Checkpoint, Variant, check_resolution
from perf.capacity.calibrate import Calibration
from perf.capacity.evidence import Evidence
from perf.capacity.published import PLAN_BATCH
from perf.report.tables import counted

LEAST_PATCHES = 1.0
"""Patches that an object's narrower side must cover after the stretch. Below one patch an object shares its token with
others; from two on it has a token of its own wherever it lies. COCO's small objects (up to 3.6 patches at 1008, 2.3 at
644) lose two thirds of their AP between the two.
"""
COMFORTABLE_PATCHES = 2.0
FPS_TOLERANCE = 0.02
"""A rate this much below the wish still counts: measurements repeat no better."""
HERE, ELSEWHERE, MODELLED = "measured here", "measured elsewhere", "modelled"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What is asked for. `memory_mb` counts a gigabyte as 1000 MB, which leaves a little room; `object_pixels` is the
    narrower side in the source frame."""

    cameras: int
    memory_mb: float
    classes: int = 4
    fps: float = 1.0
    object_pixels: float = 0.0
    source: tuple[int, int] = (1920, 1080)  # width, height
    resolutions: tuple[int, ...] = RESOLUTIONS
    prefer: str = "quality"

    def __post_init__(self) -> None:
        if self.cameras < 1:
            raise ValueError(f"cameras must be at least 1, got {self.cameras}")
        if not 1 <= self.classes <= MAX_CLASSES:
            raise ValueError(f"classes must be 1 to {MAX_CLASSES} (what one request may hold), got {self.classes}")
        if not self.fps > 0:
            raise ValueError(f"fps is frames a second of each camera and must be above 0, got {self.fps:g}")
        if not self.memory_mb > 0:
            raise ValueError(f"memory must be above 0, got {self.memory_mb:g} MB; write for example 8GB")
        if self.object_pixels < 0 or min(self.source) < 1:
            raise ValueError(
                f"object pixels and source size must be positive, got {self.object_pixels:g} and"
                f" {self.source[0]}x{self.source[1]}"
            )
        for resolution in self.resolutions:
            check_resolution(resolution)

    def patches(self, resolution: int) -> float:
        """Patches that the smallest object covers on the side that the stretch to a square shrinks most."""
        return self.object_pixels * resolution / max(self.source) / 14


@dataclass(frozen=True, slots=True)
class Figure:
    value: float
    basis: str
    where: str = ""


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
            (self.fps_per_camera, self.memory_mb), key=lambda f: (HERE, ELSEWHERE, MODELLED).index(f.basis)
        ).basis


def offers(wish: Requirements, evidence: Sequence[Evidence]) -> list[Recommendation]:
    """An offer per resolution, the best one first. `evidence` in order of preference; the first that has memory figures
    gives those."""
    found = [_offer(wish, resolution, evidence) for resolution in dict.fromkeys(wish.resolutions)]
    quality = wish.prefer == "quality"
    return sorted(found, key=lambda o: (bool(o.reasons), -o.resolution if quality else -o.fps_per_camera.value))


def _offer(wish: Requirements, resolution: int, evidence: Sequence[Evidence]) -> Recommendation:
    fps, p95 = _speed(wish, resolution, evidence[0])
    memory = _memory(wish, resolution, evidence)
    offer = Recommendation(resolution, min(wish.cameras, PLAN_BATCH), fps, p95, memory, wish.patches(resolution))
    many = counted(wish.cameras, "camera")
    if memory.value > wish.memory_mb:
        offer.reasons.append(
            f"{resolution} needs {memory.value / 1e3:.1f} GB for {many}, you have {wish.memory_mb / 1e3:g}"
        )
    if fps.value < wish.fps * (1 - FPS_TOLERANCE):
        offer.reasons.append(
            f"{resolution} gives each of {many} {fps.value:.2g} frames a second, you want {wish.fps:g}"
        )
    if memory.basis == MODELLED:
        extra = (score_bytes(resolution, offer.batch, fused=False) - score_bytes(resolution, offer.batch)) / MB
        if extra:
            offer.notes.append(
                f"memory is modelled with fused attention; where the engine has none, {resolution} needs"
                f" {(memory.value + extra) / 1e3:.1f} GB"
            )
    if wish.object_pixels and offer.object_patches < LEAST_PATCHES - 1e-9:
        offer.reasons.append(
            f"an object of {wish.object_pixels:g} pixels covers {offer.object_patches:.2f} patches at {resolution}, "
            f"below {LEAST_PATCHES:g} it is not seen reliably"
        )
    elif wish.object_pixels and offer.object_patches < COMFORTABLE_PATCHES:
        offer.notes.append(
            f"the smallest object covers {offer.object_patches:.1f} patches at {resolution}: expect misses,"
            f" {COMFORTABLE_PATCHES:g} are comfortable"
        )
    return offer


def _speed(wish: Requirements, resolution: int, evidence: Evidence) -> tuple[Figure, Figure]:
    """Frames a second per camera and p95 of a round trip in milliseconds."""
    sample = evidence.find(resolution, wish.cameras, wish.classes)
    if sample:
        basis, where = (HERE if sample.here else ELSEWHERE), sample.where
        fps = Figure(1e3 / sample.ms_per_frame / wish.cameras, basis, where)
        return fps, Figure(sample.p95_ms, basis, where) if sample.p95_ms else Figure(sample.ms, basis, where)
    calibration = evidence.calibration()
    batch = min(wish.cameras, PLAN_BATCH)
    ms = calibration.ms_per_frame(resolution, batch, wish.classes)
    where = f"calibrated by {calibration.where}"
    return (
        Figure(1e3 / ms / wish.cameras, MODELLED, where),
        Figure(ms * wish.cameras * calibration.p95_ratio, MODELLED, where),
    )


def _memory(wish: Requirements, resolution: int, evidence: Sequence[Evidence]) -> Figure:
    for source in evidence:
        if source.architecture != evidence[0].architecture:
            continue
        sample = source.find(resolution, wish.cameras, wish.classes)
        if sample and sample.memory_mb:
            return Figure(sample.memory_mb, HERE if sample.here else ELSEWHERE, sample.where)
        calibration = source.calibration()
        memory = calibration.memory_mb(resolution, min(wish.cameras, PLAN_BATCH), wish.classes)
        if memory is not None:
            checkpoint = Checkpoint(hidden_size=source.architecture.fpn, num_queries=source.architecture.queries)
            pool = pool_mb([Variant(resolution, queries=checkpoint.num_queries, checkpoint=checkpoint)])
            return Figure(memory + pool, MODELLED, f"calibrated by {calibration.where}")
    raise ValueError(
        f"{evidence[0].name} has no GPU memory figures, and no other measurement of the same model has; sweep on the"
        " GPU, or leave it out to decide by the published table"
    )


def what_next(wish: Requirements, rejected: Sequence[Recommendation], calibration: Calibration) -> str:
    """One sentence for a wish that nothing grants: what the nearest resolution can do."""
    fits = [o for o in rejected if o.memory_mb.value <= wish.memory_mb]
    if not fits:
        least = min(rejected, key=lambda o: o.memory_mb.value)
        return (
            f"the least that works is {least.memory_mb.value / 1e3:.1f} GB, for {least.resolution}; take a larger GPU"
            " or fewer cameras at once"
        )
    seen = [o for o in fits if not wish.object_pixels or o.object_patches >= LEAST_PATCHES]
    if not seen:
        largest = max(fits, key=lambda o: o.resolution)
        pixels = math.ceil(LEAST_PATCHES * 14 * max(wish.source) / largest.resolution)
        return (
            f"{largest.resolution}, the largest that fits, sees objects from {pixels} pixels on; crop the frame, move"
            " the camera closer or take a larger GPU"
        )
    fastest = max(seen, key=lambda o: o.fps_per_camera.value)
    total = fastest.fps_per_camera.value * wish.cameras
    cameras = math.floor(total * (1 + FPS_TOLERANCE) / wish.fps)
    gpus = math.ceil(wish.cameras * wish.fps / (total * (1 + FPS_TOLERANCE)))
    enough = (
        f"{cameras} cameras at {wish.fps:g} frames a second"
        if cameras
        else f"one camera at {total:.2g} frames a second"
    )
    return (
        f"at {fastest.resolution} one such GPU is enough for {enough}; {wish.cameras} cameras need {gpus} of them, or"
        " fewer frames a second"
    )


def delay_us(wish: Requirements, offer: Recommendation) -> int:
    """How long the dynamic batcher should wait: not at all for one camera, else a tenth of the time between two frames,
    1 to 5 ms."""
    return 0 if wish.cameras == 1 else round(min(5000, max(1000, 1e5 / (wish.fps * wish.cameras) * offer.batch)))
