"""What one pod, a server with one GPU, takes for its batches: fitted to two measured rows of the whole server.

One camera with one frame under way gives batches of one; sixteen frames under way fill every batch. Between them a
batch's time is taken to be linear in its frames. The third measured row, eight frames under way, is what the simulation
is held to (`tests/perf/scale/test_measured.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import results

MEASURED = Path(__file__).parents[1] / "results" / "h100" / "end_to_end.json"
"""Rows of `sam3-perf bench end-to-end`."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A batch of n frames occupies the GPU for `fixed_s + n * frame_s` seconds and holds at most `largest` frames.
    `outside_s` of a frame's way (transport, decoding) overlap with other batches. `shown_use` is the utilisation that
    the card shows where it always has work, 0 to 1."""

    fixed_s: float
    frame_s: float
    outside_s: float = 0.0
    largest: int = 8
    shown_use: float = 1.0
    where: str = ""

    def batch_s(self, frames: int) -> float:
        return self.fixed_s + frames * self.frame_s

    @property
    def fps(self) -> float:
        """Frames a second where every batch is full."""
        return self.largest / self.batch_s(self.largest)


def measured(resolution: int, path: Path = MEASURED) -> Pod:
    """The pod of a file of `sam3-perf bench end-to-end`. Raises ResultsError where a row is missing."""
    data = results.load(path)
    one = row_of(data, path, resolution, cameras=1, in_flight=1)
    full = row_of(data, path, resolution, cameras=8, in_flight=2)
    largest = int(data["setting"]["max_batch"])
    outside_ms = one["stage_decode_ms"] + one["mean_ms"] - one["stage_total_ms"]
    single_s, full_s = (one["mean_ms"] - outside_ms) / 1e3, largest / full["fps"]
    frame_s = (full_s - single_s) / (largest - 1)
    card = data["machine"].get("gpu", "one processor")
    where = f"{card}, {resolution}, {one['classes']} classes, {data['setting']['precision']}"
    return Pod(single_s - frame_s, frame_s, outside_ms / 1e3, largest, full["gpu_use"], where)


def row_of(data: dict[str, Any], path: Path, resolution: int, cameras: int, in_flight: int) -> dict[str, Any]:
    """The detailed row of so many cameras with so many frames under way each."""
    wanted = (resolution, cameras, in_flight)
    for row in data.get("details", ()):
        if (row["resolution"], row["cameras"], row["in_flight"]) == wanted:
            return dict(row)
    raise results.ResultsError(
        f"{path} has no row of {cameras} cameras with {in_flight} frames under way at {resolution}; "
        "measure it with sam3-perf bench end-to-end"
    )
