"""The plot of a simulated day: cameras, pods and the age of frames, a line for each of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perf.report import plots
from perf.report.cli import png
from perf.scale.day import Day

COLOURS = ("#3b6fb6", "#e08214", "#c0504d", "#888888")
EVERY_S = 300
"""Seconds in a point of a line."""


def draw(path: Path, cameras: NDArray[np.int64], days: Mapping[str, Day]) -> None:
    """Writes the PNG of one day under each of the settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure(cameras, days)))


def figure(cameras: NDArray[np.int64], days: Mapping[str, Day]) -> Figure:
    with plots.plt.rc_context(plots.STYLE):
        whole, (top, pods, ages, dropped) = plots.plt.subplots(
            4, 1, figsize=(9, 9), sharex=True, constrained_layout=True, height_ratios=(2, 3, 3, 2)
        )
    starts = range(0, len(cameras), EVERY_S)
    hours = np.array(starts) / 3600
    made = next(iter(days.values())).made
    top.plot(hours, cameras[::EVERY_S], color="black", label="cameras connected")
    top.plot(hours, means(made), color="black", linestyle=":", label="frames a second that are sent")
    for order, ((name, day), colour) in enumerate(zip(days.items(), COLOURS, strict=False)):
        line: dict[str, Any] = {"color": colour, "zorder": 3 - order / 10, "alpha": 0.6 if order else 1.0}
        blocks = [slice(start, start + EVERY_S) for start in starts]
        pods.plot(np.arange(0, 24, 1 / 60), day.ready[::60], label=name, linewidth=1, **line)
        ages.plot(hours, [1e3 * day.age(0.95, block) for block in blocks], **line)
        dropped.plot(hours, 100 * means(day.dropped) / means(made), **line)
    pods.set_ylabel("pods that serve")
    ages.set(ylabel="p95 of a frame's age, ms", yscale="log")
    ages.yaxis.set_major_formatter("{x:g}")
    dropped.set(ylabel="frames dropped, %", xlabel="hour of the day", xticks=range(0, 25, 3), xlim=(0, 24))
    for panel in (top, pods):
        panel.legend(fontsize=8, loc="upper left")
    return whole


def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each `EVERY_S` seconds."""
    return values.reshape(-1, EVERY_S).mean(axis=1)
