"""Which resolutions of detector and tracker for videos whose objects are followed, on this GPU.

    ms a frame = base + call / batch + detector / k + objects x ms an object

"base" (decoding, image transformer), "call" (what every batch costs) and "detector" are fitted to one and eight videos
at a server, for each pair of resolutions that was measured, "ms an object" to one video with 8 to 64 objects; all on
one H100. On another GPU all are as much slower as pictures are there than on an H200. Memory is what the start check
reckons with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemble.server.architecture import SAM3
from ensemble.server.memory import MB, ONE_PROCESS, Need, engine_model_need, text_encoder_bytes, weight_bytes
from ensemble.spec import Tracker, Variant
from ensemble.video.sizes import slot_bytes
from ensemble.video.variant import MAX_DETECT_EVERY, MAX_OBJECTS
from perf import results
from perf.capacity.advice import (
    COMFORTABLE_PATCHES,
    ELSEWHERE,
    FPS_TOLERANCE,
    GB,
    LEAST_PATCHES,
    MODELLED,
    TEXT_ENCODER_ON_CPU,
    Figure,
    Requirements,
)
from perf.capacity.calibrate import least_squares
from perf.capacity.evidence import RESULTS, Evidence, published
from perf.tables import counted

MEASURED = RESULTS / "h100" / "video.json"
ON = "h200"
"""Whose pictures tell how much slower another GPU is."""
SMALL = RESULTS / "cpu" / "video.json"
"""How well the small checkpoint follows, at a quarter of SAM3's resolutions."""
QUARTER = 4
EVERY = (1, 2, 4, 8, 16)
TRACKER_PARAMETERS = 23e6
"""Of all four parts; two of them hold the mask decoder."""
ONE_CALL = Tracker().max_objects
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one frame on the GPU that was measured; see the module."""

    base: float
    call: float
    detector: float
    each: float

    def ms(self, batch: float, detect_every: int, objects: float) -> float:
        return self.base + self.call / batch + self.detector / detect_every + self.each * objects


@dataclass(slots=True)
class Choice:
    """A pair of resolutions: figures, and why it will not do (empty: it will)."""

    resolution: int
    tracker_resolution: int
    detect_every: int
    fps_per_camera: Figure
    memory_mb: Figure
    object_patches: float
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def times(rows: Sequence[Row]) -> dict[tuple[int, int], Times]:
    """By resolutions of detector and tracker; those whose servers were measured with several numbers of sessions and
    of frames between detections."""
    found = {}
    served = [row for row in rows if "stage_ms" in row and not row.get("memory_mb")]
    for pair in sorted({_pair(row) for row in served}, reverse=True):
        alone = [r for r in rows if _pair(r) == (pair[1], pair[1]) and "stage_ms" not in r and r["objects"] >= ONE_CALL]
        own = [row for row in served if _pair(row) == pair]
        counts = ({row[name] for row in own} for name in ("sessions", "detect_every"))
        if len(alone) < 2 or any(len(values) < 2 for values in counts):
            continue
        each = float(np.polyfit([row["objects"] for row in alone], [1e3 / row["fps"] for row in alone], 1)[0])
        columns = [(1.0, 1 / min(row["sessions"], Variant.max_batch), 1 / row["detect_every"]) for row in own]
        milliseconds = [1e3 / row["fps"] for row in own]
        rest = [ms - each * row["objects"] for ms, row in zip(milliseconds, own, strict=True)]
        base, call, detector = least_squares(columns, rest, milliseconds)
        found[pair] = Times(base, call, detector, each)
    return found


def _pair(row: Row) -> tuple[int, int]:
    return int(row["resolution"]), int(row["tracker_resolution"])


def recommend(
    wanted: Requirements, objects: int, every: Sequence[int], evidence: Evidence, rows: Sequence[Row]
) -> list[Choice]:
    """A choice for each pair of resolutions, the best first. Raises ValueError for what no server does."""
    if wanted.precision != "fp16":
        raise ValueError(f"videos are measured in fp16, got {wanted.precision!r}; leave out --precision")
    if not 1 <= objects <= MAX_OBJECTS:
        raise ValueError(f"objects must be 1 to {MAX_OBJECTS}, got {objects}")
    if not all(1 <= k <= MAX_DETECT_EVERY for k in every):
        raise ValueError(f"detect-every must be 1 to {MAX_DETECT_EVERY}, got {', '.join(map(str, every))}")
    if wanted.engine not in ("", "aoti"):
        raise ValueError(f"videos are served by engine aoti on a GPU, got {wanted.engine!r}; leave out --engine")
    known = {pair: t for pair, t in times(rows).items() if pair[0] in wanted.resolutions}
    found = [_choice(wanted, objects, every, pair, t, evidence) for pair, t in known.items()]
    if not found:
        pairs = ", ".join(f"{detector} with {tracker}" for detector, tracker in times(rows))
        asked = ", ".join(map(str, wanted.resolutions))
        raise ValueError(f"expected resolutions whose videos were measured ({pairs}), got {asked}")
    quality = wanted.prefer == "quality"
    return sorted(
        found,
        key=lambda c: (
            bool(c.reasons),
            *((-c.resolution, -c.tracker_resolution) if quality else (-c.fps_per_camera.value,)),
        ),
    )


def _choice(
    wanted: Requirements, objects: int, every: Sequence[int], pair: tuple[int, int], cost: Times, evidence: Evidence
) -> Choice:
    slower, batch = _slower(pair[0], wanted.classes, evidence), min(wanted.cameras, Variant.max_batch)
    rates = {k: 1e3 / (cost.ms(batch, k, objects) * slower) / wanted.cameras for k in every}
    enough = [k for k, fps in rates.items() if fps >= wanted.fps * (1 - FPS_TOLERANCE)]
    k = min(enough, default=max(every))
    where = f"fitted to {MEASURED.name} of one NVIDIA H100"
    if slower != 1:
        where += f"; {slower:.2g} times as slow, as pictures are by {evidence.calibration().where}"
    need, note = memory(wanted, objects, pair)
    choice = Choice(
        *pair,
        k,
        Figure(rates[k], ELSEWHERE if slower == 1 else MODELLED, where),
        Figure(need.total, MODELLED, ONE_PROCESS.source),
        wanted.patches(pair[0]),
    )
    many = f"{counted(wanted.cameras, 'camera')} with {counted(objects, 'object')} each"
    names = f"{pair[0]} with tracker {pair[1]}"
    choice.notes += [note] if note else []
    choice.notes += small_checkpoint(pair, k)
    if need.total > wanted.memory_mb:
        choice.reasons.append(
            f"{names} needs {need.total / GB:.1f} GB for {many}, you have {wanted.memory_mb / GB:.3g}"
        )
    if not enough:
        choice.reasons.append(
            f"{names} gives each of {many} {rates[k]:.2g} frames a second, with a detection every {k}th frame; you want"
            f" {wanted.fps:g}"
        )
    if wanted.object_pixels and choice.object_patches < LEAST_PATCHES - 1e-9:
        choice.reasons.append(
            f"an object of {wanted.object_pixels:g} pixels covers {choice.object_patches:.2f} patches at {pair[0]},"
            f" below {LEAST_PATCHES:g} it is not seen reliably"
        )
    elif wanted.object_pixels and choice.object_patches < COMFORTABLE_PATCHES:
        choice.notes.append(
            f"the smallest object covers {choice.object_patches:.1f} patches at {pair[0]}: expect misses"
        )
    return choice


def _slower(resolution: int, classes: int, evidence: Evidence) -> float:
    """How many times longer pictures take by this evidence than on the GPU whose videos were measured."""
    if evidence.name == ON:
        return 1.0
    batch = Variant.max_batch
    theirs = published(ON).calibration().ms_per_frame(resolution, batch, classes)
    return evidence.calibration().ms_per_frame(resolution, batch, classes) / theirs


def memory(wanted: Requirements, objects: int, pair: tuple[int, int]) -> tuple[Need, str]:
    """What a server of SAM3 needs for these videos, and a note where its text encoder has to be on the CPU for that."""
    frames, a = min(wanted.cameras, Variant.max_batch), SAM3
    detector = Variant(pair[0], max_batch=frames, max_pairs=min(frames * wanted.classes, Variant.max_pairs))
    follower = tracking(pair[1], wanted.cameras * objects)
    weights = weight_bytes(a) + 2 * TRACKER_PARAMETERS
    if pair[0] != pair[1]:  # an image transformer of its own
        weights += 2 * a.layers * (4 * a.width**2 + 2 * a.width * a.mlp)
    bank = wanted.cameras * objects * slot_bytes(follower) / MB
    for bytes_, note in ((weights, ""), (weights - text_encoder_bytes(a), TEXT_ENCODER_ON_CPU)):
        need = engine_model_need([detector], bytes_ / MB, "aoti", None, [follower]) + Need(videos=bank)
        if need.total <= wanted.memory_mb:
            return need, note
    return need, note


def tracking(resolution: int, objects: int) -> Variant:
    """SAM3 with a tracker, whose calls are no larger than so many objects need."""
    return Variant(resolution, tracker=Tracker(max_objects=min(ONE_CALL, objects)))


def small_checkpoint(pair: tuple[int, int], every: int) -> list[str]:
    """How well the small checkpoint does at a quarter of these resolutions, where that was measured."""
    for row in results.load(SMALL)["rows"]:
        if (*_pair(row), row["detect_every"]) == (pair[0] / QUARTER, pair[1] / QUARTER, every):
            return [
                f"the small checkpoint at a quarter of these resolutions: J&F {row['j_and_f']:.3f}, HOTA"
                f" {row['hota']:.3f}, {row['id_switches']} identity switches"
            ]
    return []
