"""What `sam3-perf capacity --video` prints: the table, the reasons and the JSON line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from perf.capacity.advice import ELSEWHERE, GB, MODELLED
from perf.capacity.videos import Choice
from perf.console import wide_console

MARKS = {ELSEWHERE: " °", MODELLED: " *"}


def answer(found: Sequence[Choice]) -> int:
    """0: the first will do; 1: none will, and the last line says what the nearest one lacks."""
    console = wide_console()
    console.print(table(found))
    rejected = [choice for choice in found if choice.reasons]
    for reason in (reason for choice in rejected for reason in choice.reasons):
        console.print(f"rejected: {reason}", markup=False, highlight=False)
    lost = [{**figures(choice), "reasons": choice.reasons} for choice in rejected]
    if len(rejected) == len(found):
        least, fastest = (min(found, key=lambda c: c.memory_mb.value), max(found, key=lambda c: c.fps_per_camera.value))
        sentence = (
            f"no pair of resolutions will do: the least memory is {least.memory_mb.value / GB:.1f} GB"
            f" ({least.resolution} with tracker {least.tracker_resolution}), the most frames a second of each camera"
            f" {fastest.fps_per_camera.value:.2g} ({fastest.resolution} with tracker {fastest.tracker_resolution});"
            " take a larger GPU, or fewer cameras, objects or frames"
        )
        console.print(sentence, style="bold red", markup=False)
        print(json.dumps({"error": sentence, "rejected": lost}))
        return 1
    best = found[0]
    for note in best.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    where = "; ".join(dict.fromkeys((best.fps_per_camera.where, best.memory_mb.where)))
    console.print(f"{best.resolution} with tracker {best.tracker_resolution}: {where}", style="bold", markup=False)
    others = [{**figures(choice), "notes": choice.notes} for choice in found[1:] if not choice.reasons]
    print(json.dumps({**figures(best), "notes": best.notes, "alternatives": others, "rejected": lost}))
    return 0


def figures(choice: Choice) -> dict[str, Any]:
    """A choice as plain data; "figures" says where each comes from."""
    known = {name: getattr(choice, name) for name in ("fps_per_camera", "memory_mb")}
    return {
        "resolution": choice.resolution,
        "tracker_resolution": choice.tracker_resolution,
        "detect_every": choice.detect_every,
        "fps_per_camera": round(choice.fps_per_camera.value, 2),
        "memory_mb": round(choice.memory_mb.value),
        "object_patches": round(choice.object_patches, 2),
        "figures": {name: {k: v for k, v in asdict(f).items() if k in ("basis", "where")} for name, f in known.items()},
    }


def table(found: Sequence[Choice]) -> Table:
    sheet = Table(title="best first")
    columns = ("detector", "tracker", "detection every", "fps per camera", "memory MB", "object, patches", "will do")
    for column in columns:
        sheet.add_column(column, justify="right")
    for choice in found:
        fps, memory = choice.fps_per_camera, choice.memory_mb
        patches = f"{choice.object_patches:.2f}" if choice.object_patches else "-"
        cells = [f"{fps.value:.2f}{MARKS[fps.basis]}", f"{memory.value:,.0f}{MARKS[memory.basis]}", patches]
        names = (str(choice.resolution), str(choice.tracker_resolution), str(choice.detect_every))
        sheet.add_row(*names, *cells, "no" if choice.reasons else "yes")
    sheet.caption = "° measured elsewhere   * modelled"
    return sheet
