"""The tables of a sweep's rows, as plain text cells for Markdown and HTML, and which rows count."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A title, the columns' names, and rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [
            f"**{self.title}**",
            "",
            f"| {' | '.join(self.columns)} |",
            f"|{'|'.join(['---:'] * len(self.columns))}|",
        ]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)]) + "\n"

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self.rows)
        return f"<h3>{html.escape(self.title)}</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def counted(number: int, noun: str) -> str:
    """`1 camera`, `8 cameras`, `4 classes`."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def front_rows(rows: Sequence[Row], protocol: str = "grpc") -> list[Row]:
    """Rows of front models under steady load, largest resolution first; of points that were measured in several turns,
    the fastest.

    Other work on the machine only ever takes time away, so the fastest turn is the least disturbed; `repeatability`
    says how far turns lie apart.
    """
    groups: dict[tuple[int, int, int], list[Row]] = {}
    for r in _steady(rows, protocol):
        groups.setdefault((-r["resolution"], r["classes"], r["cameras"]), []).append(r)
    return [max(group, key=lambda r: r["fps"]) for _, group in sorted(groups.items())]


def _steady(rows: Sequence[Row], protocol: str = "grpc") -> list[Row]:
    return [r for r in rows if r["target"] == "front" and not r["rate"] and r["protocol"] == protocol]


def repeatability(rows: Sequence[Row]) -> float | None:
    """How far a resolution's throughput over that of the largest, in one turn, lies from its median over the turns, at
    most; None for a single turn."""
    fps = {(r["resolution"], r["cameras"], r["classes"], r.get("turn", 1)): r["fps"] for r in _steady(rows)}
    largest = max((key[0] for key in fps), default=0)
    ratios: dict[tuple[int, int, int], list[float]] = {}
    for (resolution, *load, turn), value in fps.items():
        base = fps.get((largest, *load, turn))
        if resolution != largest and base:
            ratios.setdefault((resolution, *load), []).append(value / base)
    spread = [abs(ratio / median(found) - 1) for found in ratios.values() if len(found) > 1 for ratio in found]
    return round(max(spread), 3) if spread else None


def memory_of(row: Row) -> float:
    """Of the GPU; of the server's processes where there is none."""
    return float(row.get("gpu_memory_mb") or row.get("server_memory_mb") or 0)


def own_memory(rows: Sequence[Row]) -> set[int]:
    """The `id` of each front model's row, in the order of measuring, whose memory is that of its own load.

    Allocators keep what they once took: after eight cameras, one camera shows the memory of eight.
    """
    loads: dict[int, list[tuple[int, int]]] = {}
    own = set()
    for row in (r for r in rows if r["target"] == "front"):
        load = (row["cameras"], row["cameras"] * row["classes"])
        earlier = loads.setdefault(row["resolution"], [])
        if all(load[0] >= frames and load[1] >= pairs for frames, pairs in earlier):
            own.add(id(row))
        earlier.append(load)
    return own


def streams(rows: Sequence[Row], cameras: int, classes: int) -> Sheet:
    """One row a resolution: what `cameras` streams get."""
    found, own = [r for r in front_rows(rows) if (r["cameras"], r["classes"]) == (cameras, classes)], own_memory(rows)
    title = f"{'Single stream' if cameras == 1 else counted(cameras, 'camera')}, {counted(classes, 'class')}"
    columns = ("resolution", "patches", "fps", "fps per camera", "mean ms", "p95 ms", "batch", "memory MB")
    cells = [
        (
            str(r["resolution"]),
            str(r["resolution"] // 14),
            f"{r['fps']:.1f}",
            f"{r['fps'] / cameras:.2f}",
            f"{r['mean_ms']:.0f}",
            f"{r['p95_ms']:.0f}",
            f"{r['mean_batch']:.1f}",
            f"{'' if id(r) in own else '≤ '}{memory_of(r):,.0f}" if memory_of(r) else "-",
        )
        for r in found
    ]
    return Sheet(title, columns, tuple(cells))


def relative(rows: Sequence[Row], cameras: Sequence[int], classes: int) -> Sheet:
    """Throughput of each resolution against the largest one, for each number of cameras."""
    kept = [r for r in front_rows(rows) if r["classes"] == classes]
    by_point = {(r["resolution"], r["cameras"]): r["fps"] for r in kept}
    resolutions = list(dict.fromkeys(r["resolution"] for r in kept))
    cells = []
    for resolution in resolutions:
        ratios = [
            f"{by_point[resolution, c] / by_point[resolutions[0], c]:.0%}" if (resolution, c) in by_point else "-"
            for c in cameras
        ]
        cells.append((str(resolution), *ratios))
    names = tuple(counted(c, "camera") for c in cameras)
    return Sheet(
        f"Throughput, {resolutions[0] if resolutions else '-'} is 100 %, {classes} classes",
        ("resolution", *names),
        tuple(cells),
    )


def ratios(first: Sequence[Row], second: Sequence[Row], names: tuple[str, str]) -> Sheet:
    """Points that both sweeps measured, side by side; the ratio is the second over the first."""

    def keyed(rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
        return {(r["resolution"], r["classes"], r["cameras"]): r for r in front_rows(rows)}

    left, right = keyed(first), keyed(second)
    columns = ("resolution", "classes", "cameras", f"fps {names[0]}", f"fps {names[1]}", "ratio", "p95 ratio")
    cells = [
        (
            *map(str, key),
            f"{a['fps']:.1f}",
            f"{right[key]['fps']:.1f}",
            f"{right[key]['fps'] / a['fps']:.2f}",
            f"{right[key]['p95_ms'] / a['p95_ms']:.2f}",
        )
        for key, a in left.items()
        if key in right
    ]
    return Sheet(f"{names[1]} against {names[0]}", columns, tuple(cells))


def guide(rows: Sequence[Row]) -> list[Sheet]:
    """The resolution guide's tables: single stream, most cameras, relative; for the largest number of classes."""
    kept = front_rows(rows)
    if not kept:
        return []
    classes = max(r["classes"] for r in kept)
    cameras = sorted({r["cameras"] for r in kept})
    found = [streams(rows, cameras[0], classes)]
    if len(cameras) > 1:
        found.append(streams(rows, cameras[-1], classes))
    return [*found, relative(rows, cameras, classes)]
