"""The whole server on one GPU, beside what its engines reach alone and beside transformers as its users run it.

Cameras are perf_analyzer's concurrent requests over gRPC: a JPEG of 1080p and class names in, boxes and packed masks
out, the best `PICKS` of a frame. The server is stopped before its peers are timed on the same card, and all of them see
the same frames. Its engines alone make as many masks of a frame, evenly of each class; they are one GPU's, also beside
a server on several. The least cosine of the repository's artifacts with the checkpoint in fp32 stands beside speeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.connection import Client
from ensemble.server import repository as placement
from ensemble.server.cli import add_front_options, front_settings, server_settings
from ensemble.server.repository import Served
from ensemble.server.requirements import ServerError
from perf import record
from perf.bench.user_path import engines_fps, transformers_fps
from perf.console import make_parser, refuse
from perf.sweep import inputs
from perf.sweep.analyzer import Analyzer, AnalyzerError
from perf.sweep.metrics import MetricsError
from perf.sweep.points import FRONT, Point
from perf.sweep.target import serving
from perf.sweep.window import Load, measure

PICKS = 20
"""Boxes of a frame, with their masks: its best."""
BATCH = 8
"""Frames of a call of the engines alone and of transformers."""
LOWEST = 1e-6
"""Threshold that every query passes: random weights know no objects."""
SIZE = (1920, 1080)
FIGURES = ("fps", "p50_ms", "p95_ms", "p99_ms", "queue_ms", "mean_batch")
"""Of a window, those in the row; the others are details."""
EXAMPLES = """examples:
  sam3-perf bench end-to-end --repository build/packages --checkpoint random --resolution 1008 672
  sam3-perf bench end-to-end --repository build/packages --checkpoint random --cameras 16 --in-flight 1"""
log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    p = make_parser("bench end-to-end", __doc__, EXAMPLES)
    p.add_argument("--repository", type=Path, required=True, help="written by sam3-export for the engine to measure")
    p.add_argument(
        "--checkpoint", required=True, help="that the repository was made from: folder, hub name or `random`"
    )
    p.add_argument("--resolution", type=int, nargs="+", default=[1008, 672], help="default 1008 672")
    p.add_argument("--cameras", type=int, nargs="+", default=[1, 8], help="default 1 8")
    p.add_argument(
        "--in-flight",
        type=int,
        nargs="+",
        default=[1, 2],
        help="frames of each camera under way, one of a single camera; default 1 2",
    )
    p.add_argument("--classes", type=int, default=4, help="default %(default)s")
    add_front_options(p)
    p.add_argument("--device", default="cuda", help="of the peers; default %(default)s")
    p.add_argument(
        "--requests", type=int, default=256, help="of each of perf_analyzer's three windows; default %(default)s"
    )
    p.add_argument("--seconds", type=float, default=4, help="of a peer's window; default %(default)s")
    p.add_argument("--point-timeout", type=float, default=300, help="seconds for the windows; default %(default)s")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: the server or perf_analyzer cannot be used, and stderr says why."""
    p = parser()
    options = p.parse_args(argv)
    load = Load(options.requests, *SIZE, threshold=LOWEST, max_detections=PICKS, logged=False)
    shown = load.pictures()
    rows: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    try:
        offered = placement.choose(placement.read(options.repository), options.resolution)
        for served in placement.suited(offered, front_settings(options)):
            found = []
            for row, more in measure_server(options, served, load):
                found.append(row)
                details.append(more)
                log.info("%s\n%s", json.dumps(row), json.dumps(more))
            frames, variant, picks = shown[:BATCH], served.variant, max(1, PICKS // options.classes)
            alone = engines_fps(options.repository, variant, frames, options.classes, picks, options.seconds)
            peer = transformers_fps(
                options.checkpoint, variant.resolution, frames, options.classes, picks, options.device, options.seconds
            )
            for row in found:
                row |= {"engines_fps": alone, "of_engines": _ratio(row["fps"], alone and alone * row["gpus"])}
                row |= {"transformers_user_path_fps": peer, "of_transformers": _ratio(row["fps"], peer)}
                rows.append(row)
    except (AnalyzerError, MetricsError, ServerError) as error:
        return refuse(p.prog, error)
    data = record.new(p.prog, argv) | {"setting": load.setting(), "details": details, "rows": rows}
    record.publish(options.output, data, "whole server")
    return 0


def _ratio(fps: float, other: float | None) -> float | None:
    return round(fps / other, 3) if other else None


# ---- the server
def measure_server(
    options: argparse.Namespace, served: Served, load: Load
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """For each number of frames under way perf_analyzer's figures of a front model with the GPU memory that its server
    had in use; and what the server says of stages and models."""
    variant = served.variant
    cosines = [
        c["cosine"] for a in served.artifacts for c in (a.manifest.get("gate") or {}).get("outputs", {}).values()
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        Analyzer() as analyzer,
        serving(options, [variant.resolution]) as target,
    ):
        look_once(target.grpc, variant.front_name, load.pictures()[0], options.classes)
        own = variant.precision if variant.front_name.endswith(variant.precision) else ""
        point = Point(FRONT, variant.resolution, 1, options.classes, precision=own)
        gpus = len(server_settings(options)["gpus"])
        for cameras, in_flight in loads(options.cameras, options.in_flight):
            under_way = replace(point, cameras=cameras * in_flight)
            told = measure(
                analyzer, target, under_way, target.fronts(), Path(folder), load, timeout=options.point_timeout
            )
            about = {"resolution": variant.resolution, "gpus": gpus, "cameras": cameras}
            about |= {"in_flight": in_flight, "classes": options.classes}
            row = {
                "engine": served.engine,
                "precision": variant.precision,
                **about,
                **{name: round(told[name], 2) for name in FIGURES},
            }
            row |= {"peak_mb": round(told["gpu_memory_mb"], 2), "cosine": round(min(cosines), 6) if cosines else None}
            yield row, told | about | {"variant": variant.to_dict()}


def loads(cameras: Sequence[int], in_flight: Sequence[int]) -> list[tuple[int, int]]:
    """Cameras and frames of each under way, the smallest load first: memory that a server keeps tells of the largest so
    far. Of a single camera one frame, since its latency is asked for."""
    pairs = {(n, 1 if n == 1 else m) for n in cameras for m in in_flight}
    return sorted(pairs, key=lambda pair: pair[0] * pair[1])


def look_once(url: str, model: str, picture: inputs.SampleFrame, classes: int) -> None:
    """The first call of all models. Raises ServerError unless it gives all detections asked for, each with its mask."""
    wanted = PICKS
    with Client(url, model=model, timeout=120) as client:
        names = inputs.classes_of(picture, classes)
        found = client.detect(picture.jpeg, names, threshold=LOWEST, max_detections=wanted, mask_format="bits")
    if len(found) != wanted or len(found.mask_bits) != wanted:
        raise ServerError(
            f"{model}: expected {wanted} detections with masks, got {len(found)} with {len(found.mask_bits)}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
