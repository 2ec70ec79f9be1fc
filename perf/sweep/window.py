"""The measurement of one point: perf_analyzer's figures, the server's own of the same window, and the client's.

A window is a number of requests with drawn frames in them, after a few that warm caches and allocators up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any, TypeVar

import numpy as np

from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD, Variant
from perf.sweep import inputs, metrics
from perf.sweep.analyzer import Analyzer, AnalyzerStuckError, Window
from perf.sweep.gpu_watch import GpuWatch
from perf.sweep.points import FRONT, Point
from perf.sweep.target import Target

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Load:
    """What every request carries, and how many make a window."""

    requests: int = 48
    width: int = 640
    height: int = 360
    threshold: float = DEFAULT_THRESHOLD
    max_detections: int = DEFAULT_MAX_DETECTIONS
    logged: bool = True
    """Take one window and its times from perf_analyzer's log of requests. Without, there are three windows of so many
    requests: for answers that would fill the log with megabytes of masks each."""

    def pictures(self) -> tuple[inputs.SampleFrame, ...]:
        return inputs.pictures(inputs.FRAMES, self.width, self.height)

    def setting(self) -> dict[str, Any]:
        """For the output file."""
        frames = f"{inputs.FRAMES} drawn scenes, {self.width}x{self.height} JPEG"
        asked = {"threshold": self.threshold, "max_detections": self.max_detections}
        return {"requests": self.requests, "frames": frames} | asked


def measure(
    analyzer: Analyzer,
    target: Target,
    point: Point,
    fronts: Mapping[str, Variant],
    folder: Path,
    load: Load,
    timeout: float,
) -> dict[str, Any]:
    """The row of one point; `fronts` are the loaded front models by name. Raises AnalyzerError, MetricsError."""
    shown = load.pictures()
    content = (
        inputs.front_input(shown, point.classes, point.masks, load.threshold, load.max_detections)
        if point.target == FRONT
        else inputs.vision_input(shown, point.resolution)
    )
    arguments = point.arguments(target.urls, inputs.write_input(folder / "input.json", content))

    def run(requests: int, **how: bool) -> Window:
        return analyzer.run(arguments, requests=requests, batch=point.batch, timeout=timeout, answered=answered, **how)

    def answered() -> float:
        return metrics.answered(metrics.scrape(target.metrics), point.model)

    # perf_analyzer refuses fewer requests than it sends in a second
    fewest = max(2 * point.cameras, 4, math.ceil(point.rate))
    once_more(lambda: run(fewest, log=False))
    models, loaded = fronts[replace(point, target=FRONT).model].sub_models, target.models()
    parts = {model.part: model.name for model in models if model.name in loaded}
    count, front = max(load.requests, fewest), point.target == FRONT

    def measured() -> tuple[Window, dict[str, float]]:
        before = metrics.scrape(target.metrics)
        with GpuWatch(target.metrics, target.before_mb) as watch:
            found = run(count, log=front and load.logged, steady=front and not load.logged)
        return found, metrics.figures(before, metrics.scrape(target.metrics), point.model, parts) | watch.figures()

    window, told = once_more(measured)
    row = asdict(point) | asdict(window) | told
    row["load"] = os.getloadavg()[0]  # of the last minute: above the cores' number and this sweep's own, others ran
    row["server_memory_mb"] = metrics.process_memory_mb(target.pid)
    row["loaded"] = len(fronts)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


def once_more(call: Callable[[], T]) -> T:
    """What `call` returns, at the second try where perf_analyzer got stuck in the first."""
    try:
        return call()
    except AnalyzerStuckError as error:
        log.warning("%s; measured once more", error)
        return call()


async def client_fps(point: Point, url: str, load: Load) -> float:
    """Frames a second that the project's own client gets from the same load: `point.cameras` tasks that wait for their
    answers."""
    from clients.connection import AsyncClient

    shown = load.pictures()
    asked = [(picture.jpeg, inputs.classes_of(picture, point.classes)) for picture in shown]

    async with AsyncClient(url, protocol=point.protocol, model=point.model, timeout=120) as client:

        async def camera(turns: Iterator[int]) -> None:
            for turn in turns:
                jpeg, names = asked[turn % len(asked)]
                await client.detect(
                    jpeg, names, mask_format=point.masks, threshold=load.threshold, max_detections=load.max_detections
                )

        async def window(requests: int) -> float:
            turns, start = iter(range(requests)), time.perf_counter()
            await asyncio.gather(*(camera(turns) for _ in range(point.cameras)))
            return time.perf_counter() - start

        await window(2 * point.cameras)  # connects, and warms up as perf_analyzer's window was
        return load.requests / await window(load.requests)


def check_client(
    analyzer: Analyzer, target: Target, point: Point, folder: Path, load: Load, timeout: float, rounds: int
) -> dict[str, float]:
    """The project's client against perf_analyzer over rounds of four windows, client - both of perf_analyzer - client:
    `client_fps` and `client_ratio` are medians, half of the rounds lie between `client_ratio_low` and
    `client_ratio_high`.

    A machine drifts by more than the two differ, so they are compared only within a round, in an order that a steady
    drift cancels out of.
    """
    content = inputs.front_input(load.pictures(), point.classes, point.masks, load.threshold, load.max_detections)
    arguments = point.arguments(target.urls, inputs.write_input(folder / "input.json", content))
    fps, ratios = [], []
    for _ in range(rounds):
        order = ("client", "analyzer", "analyzer", "client")
        found: dict[str, list[float]] = {"client": [], "analyzer": []}
        for who in order:
            if who == "client":
                found[who].append(asyncio.run(client_fps(point, target.urls[point.protocol], load)))
            else:
                found[who].append(analyzer.run(arguments, requests=load.requests, timeout=timeout).fps)
        fps += found["client"]
        ratios.append(harmonic_mean(found["client"]) / harmonic_mean(found["analyzer"]))
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    found_ratios = {"client_ratio": middle, "client_ratio_low": low, "client_ratio_high": high}
    return {
        "client_fps": round(median(fps), 3),
        **{name: round(float(value), 4) for name, value in found_ratios.items()},
    }
