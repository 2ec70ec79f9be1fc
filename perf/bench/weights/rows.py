"""The rows of `perf/results/weights.json`: merged from runs on several machines, and how each is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf import results

Row = dict[str, Any]
SHOWN = (
    *("scheme", "resolution", "size_mb", "load_s", "memory_mb", "cpu_ms", "core_ms", "cpu_speedup", "ms_per_frame"),
    *("cosine", "box_ap", "mask_ap"),
)


def shown(rows: Sequence[Row]) -> list[str]:
    """`SHOWN` without what no row has."""
    return [name for name in SHOWN if any(name in row for row in rows)]


def kind(row: Mapping[str, Any]) -> str:
    """The kind of machine that a row was measured on: the GPU's name, or "cpu"."""
    return str(row.get("gpu") or "cpu")


def key(row: Mapping[str, Any]) -> tuple[str, int, str]:
    """What a row is of: a later one with the same key takes its place."""
    return (str(row["scheme"]), int(row["resolution"]), kind(row))


def merged(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """`before` with `after`, which replaces rows of the same scheme, resolution and kind of machine; a row without
    average precision (`--scenes 0`) leaves that of an earlier one there."""
    found = {key(row): row for row in before}
    for row in after:
        found[key(row)] = row if "box_ap" in row else found.get(key(row), {}) | row
    return list(found.values())


def there(path: Path) -> list[Row]:
    """Rows of a file that this command wrote, none where there is no file. Raises ValueError where it is another."""
    if not path.exists():
        return []
    rows = results.load(path).get("rows")
    if not isinstance(rows, list) or not all({"scheme", "resolution"} <= row.keys() for row in rows):
        raise ValueError(
            f"expected a file of sam3-perf bench weights to merge with, {path} holds something else; name another with"
            " --output"
        )
    return rows


def with_speedups(rows: Sequence[Row], base: Mapping[str, str]) -> list[Row]:
    """Rows with `cpu_speedup`: how many times less processor time than the row of the scheme `base` (fp32 where not
    named) takes at the same resolution, on the same machine."""

    def place(row: Row) -> tuple[int, str]:
        head = row.get("timed") or row.get("measured") or {}
        return row["resolution"], json.dumps(head.get("machine"), sort_keys=True)

    times = {(row["scheme"], *place(row)): row["core_ms"] for row in rows if row.get("core_ms")}
    found = []
    for row in rows:
        plain, own = times.get((base.get(row["scheme"], "fp32"), *place(row))), row.get("core_ms")
        found.append(row | ({"cpu_speedup": round(plain / own, 2)} if plain and own else {}))
    return found
