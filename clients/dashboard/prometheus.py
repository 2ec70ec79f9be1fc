"""What the page tells Prometheus: each camera's frames, how fresh its picture is, and why it got what it got.

The servers tell of the frames that reach them (`ensemble/metrics.py`); what a camera dropped before, and how old the
latest answer is, only its client knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clients.dashboard.board import Board, View
from clients.fleet.camera import Camera
from clients.fleet.stats import percentiles

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = ("0.5", "0.95")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its kind (`counter` or `gauge`), and what it is."""

    name: str
    kind: str
    about: str


FRAMES = Family(
    "sam3_camera_frames_total", "counter", "Frames by outcome: answered, still (nothing moved), dropped, failed"
)
DROPPED = Family("sam3_camera_dropped_total", "counter", "Dropped frames whose reason is known, by reason")
TURNS = Family("sam3_camera_turns_total", "counter", "Frames that got their turn, by what gave it: floor or weight")
DETECTIONS = Family("sam3_camera_detections_total", "counter", "Detections in the frames that were answered")
AGE = Family("sam3_camera_answer_age_seconds", "gauge", "Seconds since the frame of the latest answer was captured")
LATENCY = Family("sam3_camera_latency_seconds", "gauge", "Seconds from capture to answer, of the latest 2048 answers")
LIVE = Family("sam3_camera_live", "gauge", "1 while frames come from the camera, else 0")
READ = Family("sam3_camera_read_total", "counter", "Frames that the camera asked answers for")
TARGET = Family(
    "sam3_camera_target_fps", "gauge", "Most frames a second that are taken of the camera, where it has fps"
)
FLOOR = Family("sam3_camera_floor_fps", "gauge", "Frames a second that it gets before others get more (least_fps)")
WEIGHT = Family("sam3_camera_weight", "gauge", "What its share counts at this moment: less while nothing moves")
FAMILIES = (FRAMES, DROPPED, TURNS, DETECTIONS, AGE, LATENCY, LIVE, READ, TARGET, FLOOR, WEIGHT)


def exposition(board: Board, began: float, now: float | None = None) -> str:
    """All metrics in Prometheus' text format. Until a camera's first answer its picture is as old as the page, which
    `began` at that time; `now` likewise is in seconds of `time.monotonic`."""
    now = time.monotonic() if now is None else now
    lines: dict[Family, list[str]] = {family: [] for family in FAMILIES}
    for name, camera in board.cameras.items():
        for family, labels, value in _samples(camera, board.views[name], began, now):
            told = {"camera": name, **labels}
            pairs = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in told.items())
            lines[family].append(f"{family.name}{{{pairs}}} {value:.10g}")
    page = [
        line
        for family, samples in lines.items()
        for line in (f"# HELP {family.name} {family.about}", f"# TYPE {family.name} {family.kind}", *samples)
    ]
    return "\n".join(page) + "\n"


def _samples(camera: Camera, view: View, began: float, now: float) -> Iterable[tuple[Family, Mapping[str, str], float]]:
    stats, claim = camera.stats, camera.claim
    dropped, failed = camera.dropped.total(), stats.failed.total()
    outcomes = {"answered": stats.answered, "still": stats.still, "dropped": dropped, "failed": failed}
    for outcome, count in outcomes.items():
        yield FRAMES, {"outcome": outcome}, count
    # Of `stats` alone: what a newer frame has replaced gets its reason later, and a counter may not fall.
    for reason, count in stats.dropped.items():
        yield DROPPED, {"reason": reason}, count
    for by, count in (("floor", claim.by_floor), ("weight", claim.by_weight)):
        yield TURNS, {"by": by}, count
    yield DETECTIONS, {}, stats.detections
    yield AGE, {}, now - (view.answer.frame.captured if view.answer else began)
    if stats.latencies_ms:
        for quantile, milliseconds in zip(QUANTILES, percentiles(stats.latencies_ms), strict=True):
            yield LATENCY, {"quantile": quantile}, milliseconds / 1e3
    yield LIVE, {}, camera.reader.state == "live"
    yield READ, {}, camera.reader.read
    if camera.config.fps is not None:
        yield TARGET, {}, camera.config.fps
    yield FLOOR, {}, claim.least_fps
    yield WEIGHT, {}, claim.counts
