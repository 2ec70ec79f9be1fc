"""The plots of a report, one question each, as matplotlib figures made from a sweep's rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perf.tables import Row, counted, front_rows, memory_of, own_memory

STAGES = ("decode", "text", "vision", "geometry", "decoder", "masks", "pack")
STAGE_COLOURS = ("#8dd3c7", "#bebada", "#3b6fb6", "#b3de69", "#e08214", "#c0504d", "#888888", "#d9d9d9", "#f2c14e")
PERCENTILES = (("p50_ms", "-"), ("p95_ms", "--"), ("p99_ms", ":"))
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9}


def colours(resolutions: Sequence[int]) -> dict[int, Any]:
    """A colour a resolution, dark for the largest."""
    scale = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, len(resolutions)))
    return dict(zip(sorted(resolutions, reverse=True), scale, strict=True))


def resolutions_of(rows: Sequence[Row]) -> list[int]:
    return sorted({r["resolution"] for r in rows}, reverse=True)


def throughput_latency(rows: Sequence[Row]) -> Figure:
    """Frames a second against p50, p95 and p99; a line a resolution, a point a number of cameras, a panel a number of
    classes."""
    rows = front_rows(rows)
    counts = sorted({r["classes"] for r in rows})
    figure, panels = _panels(len(counts), sharey=True)
    shade = colours(resolutions_of(rows))
    for panel, classes in zip(panels, counts, strict=True):
        for resolution in resolutions_of(rows):
            line = [r for r in rows if (r["resolution"], r["classes"]) == (resolution, classes)]
            for name, style in PERCENTILES:
                label = str(resolution) if name == "p50_ms" else None
                marker = "o" if name == "p50_ms" else ""
                panel.plot(
                    [r[name] for r in line],
                    [r["fps"] for r in line],
                    style,
                    marker=marker,
                    color=shade[resolution],
                    label=label,
                )
            for r in line:
                panel.annotate(
                    str(r["cameras"]), (r["p50_ms"], r["fps"]), textcoords="offset points", xytext=(4, 4), fontsize=7
                )
        panel.set(
            xlabel="latency, ms (p50 solid, p95 dashed, p99 dotted)",
            title=counted(classes, "class"),
        )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("frames a second")
    panels[-1].legend(title="resolution")
    figure.suptitle("Throughput against latency; numbers are cameras")
    return figure


def stage_breakdown(rows: Sequence[Row]) -> Figure:
    """Where a frame's milliseconds go, a bar a resolution; a panel for the fewest and the most cameras, at the most
    classes."""
    rows = front_rows(rows)
    classes = max(r["classes"] for r in rows)
    loads = sorted({r["cameras"] for r in rows})
    loads = [loads[0], loads[-1]] if len(loads) > 1 else loads
    figure, panels = _panels(len(loads))
    names = (*STAGES, "queue", "transport")
    for panel, cameras in zip(panels, loads, strict=True):
        bars = [r for r in rows if (r["classes"], r["cameras"]) == (classes, cameras)]
        left = np.zeros(len(bars))
        for name, colour in zip(names, STAGE_COLOURS, strict=True):
            widths = np.array([stage_ms(r, name) for r in bars])
            panel.barh([str(r["resolution"]) for r in bars], widths, left=left, color=colour, label=name)
            left += widths
        panel.invert_yaxis()
        panel.set(
            xlabel="ms a frame, from request to answer",
            title=f"{counted(cameras, 'camera')}, {counted(classes, 'class')}",
        )
    panels[0].set_ylabel("resolution")
    panels[-1].legend(fontsize=7, loc="lower right")
    figure.suptitle("Where the time goes (the wait for the other frames of a batch is in the stages)")
    return figure


def stage_ms(row: Row, name: str) -> float:
    """One stage of a row; `transport` is what the round trip took beyond queue and front model."""
    if name == "queue":
        return float(row["queue_ms"])
    if name == "transport":
        return max(0.0, row["mean_ms"] - row["stage_total_ms"] - row["queue_ms"])
    return float(row[f"stage_{name}_ms"])


def cost(rows: Sequence[Row]) -> Figure:
    """Milliseconds a frame against the number of classes, and frames a second of each camera against the number of
    cameras."""
    rows = front_rows(rows)
    figure, (left, right) = _panels(2)
    shade = colours(resolutions_of(rows))
    cameras, classes = max(r["cameras"] for r in rows), max(r["classes"] for r in rows)
    for resolution in resolutions_of(rows):
        mine = [r for r in rows if r["resolution"] == resolution]
        line = [r for r in mine if r["cameras"] == cameras]
        left.plot(
            [r["classes"] for r in line],
            [1e3 / r["fps"] for r in line],
            "-o",
            color=shade[resolution],
            label=str(resolution),
        )
        line = [r for r in mine if r["classes"] == classes]
        right.plot([r["cameras"] for r in line], [r["fps"] / r["cameras"] for r in line], "-o", color=shade[resolution])
    left.set(
        xlabel="classes",
        ylabel="ms a frame, all cameras together",
        title=f"cost of classes, {cameras} cameras",
        ylim=(0, None),
    )
    right.set(
        xlabel="cameras", ylabel="frames a second of each", title=f"cost of cameras, {classes} classes", yscale="log"
    )
    left.legend(title="resolution")
    return figure


def speed_up(rows: Sequence[Row]) -> Figure:
    """Throughput over that of the largest resolution, a group a number of cameras."""
    rows = front_rows(rows)
    classes = max(r["classes"] for r in rows)
    kept = {(r["resolution"], r["cameras"]): r["fps"] for r in rows if r["classes"] == classes}
    resolutions, cameras = resolutions_of(rows), sorted({c for _, c in kept})
    figure, (panel,) = _panels(1)
    shade, width = colours(resolutions), 0.8 / len(resolutions)
    for index, resolution in enumerate(resolutions):
        heights = [
            kept.get((resolution, c), 0) / kept[resolutions[0], c] if (resolutions[0], c) in kept else 0
            for c in cameras
        ]
        at = np.arange(len(cameras)) + index * width
        drawn = panel.bar(at, heights, width, color=shade[resolution], label=str(resolution))
        panel.bar_label(drawn, fmt="%.2f", fontsize=7)
    panel.set_xticks(np.arange(len(cameras)) + 0.4 - width / 2, [counted(c, "camera") for c in cameras])
    panel.set(ylabel="times as fast", title=f"Speed-up over {resolutions[0]}, {classes} classes")
    panel.legend(title="resolution")
    return figure


def accuracy(rows: Sequence[Row], evaluation: dict[str, Any]) -> Figure | None:
    """Box AP by object size against frames a second at the most cameras; None where no resolution was both measured and
    judged."""
    rows = front_rows(rows)
    cameras, classes = max(r["cameras"] for r in rows), max(r["classes"] for r in rows)
    speed = {str(r["resolution"]): r["fps"] for r in rows if (r["cameras"], r["classes"]) == (cameras, classes)}
    both = [r for r in speed if r in evaluation["results"]]
    if not both:
        return None
    figure, (panel,) = _panels(1)
    for name, label, style in (
        ("AP", "all", "-o"),
        ("APs", "small", ":s"),
        ("APm", "medium", "--^"),
        ("APl", "large", "-.D"),
    ):
        values = [evaluation["results"][r]["text"]["box"][name] for r in both]
        panel.plot([speed[r] for r in both], values, style, label=label)
    for r in both:
        panel.annotate(
            r, (speed[r], evaluation["results"][r]["text"]["box"]["AP"]), textcoords="offset points", xytext=(4, 6)
        )
    panel.set(
        xlabel=f"frames a second, {cameras} cameras, {classes} classes",
        ylabel="box AP",
        title="Accuracy against speed",
        ylim=(0, 1),
    )
    panel.legend(title="objects")
    return figure


def memory(rows: Sequence[Row]) -> Figure | None:
    """Memory against cameras, a line a resolution and number of classes; None where no row has any. On a GPU only where
    it is that of the point's own load."""
    on_gpu, own = any(r.get("gpu_memory_mb") for r in rows), own_memory(rows)
    rows = [r for r in front_rows(rows) if memory_of(r) and (id(r) in own or not on_gpu)]
    if not rows:
        return None
    numbers = sorted({r["classes"] for r in rows})
    figure, (panel,) = _panels(1)
    shade = colours(resolutions_of(rows))
    for resolution in resolutions_of(rows):
        for classes, marker in zip(numbers, itertools.cycle("osD^v"), strict=False):
            line = [r for r in rows if (r["resolution"], r["classes"]) == (resolution, classes)]
            panel.plot(
                [r["cameras"] for r in line],
                [memory_of(r) for r in line],
                f"-{marker}",
                color=shade[resolution],
                label=f"{resolution}, {counted(classes, 'class')}",
            )
    title = (
        "GPU memory"
        if on_gpu
        else "memory of the server's processes, all resolutions loaded, as it stood after each point"
    )
    panel.set(xlabel="cameras", ylabel="MB", title=title, ylim=(0, None))
    panel.legend(fontsize=7)
    return figure


def _panels(count: int, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, count, figsize=(max(6.4, 5.2 * count), 3.8), constrained_layout=True, squeeze=False, **options
        )
    return figure, list(axes[0])
