"""The points of a sweep: what is measured at each, in which order, and perf_analyzer's arguments for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ensemble.server.memory import feature_bytes
from ensemble.spec import MASK_FORMATS, MAX_CLASSES, check_resolution
from perf.tables import counted

FRONT, VISION = "front", "vision_encoder"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement. `cameras` requests are under way at once, or, where `rate` is not 0, `rate` requests a second
    are sent at fixed intervals, answered or not. `batch` frames travel in one request: always 1 for the front model,
    whose batches Triton forms itself.
    """

    target: str
    resolution: int
    cameras: int
    classes: int
    batch: int = 1
    rate: float = 0.0
    protocol: str = "grpc"
    shared_memory: str = "none"
    masks: str = "bits"
    turn: int = 1  # a sweep may go over all its points several times
    precision: str = ""  # int8 or fp8, which have models of their own; the others share names

    @property
    def model(self) -> str:
        start = "sam3" if self.target == FRONT else f"sam3_{self.target}"
        return f"{start}_r{self.resolution}{self.precision and f'_{self.precision}'}"

    @property
    def label(self) -> str:
        load = f"{self.rate:g}/s" if self.rate else counted(self.cameras, "camera")
        what = f"{self.classes} classes" if self.target == FRONT else f"batch {self.batch}"
        return f"{self.model}, {load}, {what}, {self.protocol}"

    def key(self) -> tuple[Any, ...]:
        return tuple(asdict(self).values())

    def arguments(self, urls: Mapping[str, str], data: Path) -> list[str]:
        """perf_analyzer's arguments, without the number of requests."""
        load = ["--request-rate-range", f"{self.rate:g}"] if self.rate else ["--concurrency-range", str(self.cameras)]
        shared = [] if self.shared_memory == "none" else ["--shared-memory", self.shared_memory]
        largest = int(feature_bytes(self.resolution, self.batch, element=4))  # of one output no more than of all
        shared += ["--output-shared-memory-size", str(largest)] if shared else []
        asked = ["-m", self.model, "-u", urls[self.protocol], "-i", self.protocol, "--input-data", str(data)]
        return [*asked, *load, *shared]


def front_parts(name: str) -> tuple[int, str]:
    """Resolution of a front model's name, and its precision where that has names of its own, else ""."""
    resolution, _, precision = name.removeprefix("sam3_r").partition("_")
    return int(resolution), precision


def points(
    resolutions: Sequence[int],
    cameras: Sequence[int],
    classes: Sequence[int],
    *,
    batches: Sequence[int] = (),
    rates: Sequence[float] = (),
    protocols: Sequence[str] = ("grpc",),
    masks: str = "bits",
    shared_memory: str = "none",
    turns: int = 1,
) -> list[Point]:
    """Every combination; the resolution changes fastest, so that what is compared is measured side by side, and all of
    it `turns` times over.

    Raises ValueError with what would work.
    """
    for resolution in resolutions:
        check_resolution(resolution)
    _at_least_one("cameras", cameras)
    _at_least_one("classes", classes)
    _at_least_one("batches", batches)
    _at_least_one("turns", [turns])
    if any(rate <= 0 for rate in rates):
        raise ValueError(f"rates are frames a second and must be above 0, got {min(rates):g}")
    if max(classes) > MAX_CLASSES:
        raise ValueError(f"one request has at most {MAX_CLASSES} classes, got {max(classes)}")
    if masks not in MASK_FORMATS:
        raise ValueError(f"masks must be one of {', '.join(MASK_FORMATS)}, got {masks!r}")
    if shared_memory != "none" and not batches:
        raise ValueError(
            "perf_analyzer has no shared memory for models with optional inputs, as the front model's are; "
            "measure the vision encoder with it: --batches 1 8 --shared-memory system"
        )
    found = [
        Point(FRONT, r, c, k, protocol=p, masks=masks)
        for p, k, c, r in itertools.product(protocols, classes, cameras, resolutions)
    ]
    found += [
        Point(FRONT, r, 1, k, rate=rate, protocol=p, masks=masks)
        for p, k, rate, r in itertools.product(protocols, classes, rates, resolutions)
    ]
    found += [
        Point(VISION, r, 1, 0, batch=b, protocol=p, shared_memory=shared_memory, masks="none")
        for p, b, r in itertools.product(protocols, batches, resolutions)
    ]
    return [replace(point, turn=turn) for turn in range(1, turns + 1) for point in found]


def _at_least_one(what: str, values: Sequence[int]) -> None:
    if any(value < 1 for value in values):
        raise ValueError(f"{what} must be at least 1, got {min(values)}")
