"""The whole server on one GPU, beside what its engines reach alone and beside transformers as its users run it: a
repository goes in, rows per resolution come out.

Cameras are perf_analyzer's concurrent requests over gRPC: a JPEG of 1080p and class names in, boxes and packed masks
out: `PICKS` of each class in the mean, the best of the frame, as if everything asked for were there. The server is
stopped before its peers are timed on the same card, and all of them see the same frames. Its engines alone make `PICKS`
masks of each class, a row of the mask head for each; where a frame's best are spread unevenly over its classes, the
server needs more rows. The least cosine of the repository's artifacts with the checkpoint in fp32 stands beside the
speeds.

    python -m perf.bench.end_to_end --repository build/packages --checkpoint random --resolutions 1008 672
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clients.connection import Client
from ensemble.server import gpu
from ensemble.server import repository as placement
from ensemble.server.cli import add_front_options, front_settings
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.repository import Served
from ensemble.server.requirements import ServerError
from perf.bench.user_path import engines_fps, transformers_fps
from perf.record import publish
from perf.results import machine, package_versions
from perf.sweep import inputs, metrics
from perf.sweep.analyzer import Analyzer, AnalyzerError, last_words
from perf.sweep.gpu_watch import GpuWatch

PICKS = 20
"""Masks of each class, in the mean over a frame's classes."""
LOWEST = 1e-6
"""Threshold that every query passes: random weights know no objects."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m perf.bench.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--repository", type=Path, required=True, help="written by sam3-export for the engine to measure")
    p.add_argument(
        "--checkpoint", required=True, help="that the repository was made from: folder, hub name or `random`"
    )
    p.add_argument("--resolutions", type=int, nargs="+", default=[1008, 672], help="default 1008 672")
    p.add_argument("--cameras", type=int, default=8, help="default %(default)s")
    p.add_argument(
        "--in-flight", type=int, nargs="+", default=[1, 2], help="frames of one camera under way; default 1 2"
    )
    p.add_argument("--classes", type=int, default=4, help="default %(default)s")
    add_front_options(p)
    p.add_argument("--device", default="cuda", help="of the peers; default %(default)s")
    p.add_argument(
        "--seconds",
        type=float,
        default=4,
        help="of each of perf_analyzer's three windows, and of a peer's; default %(default)s",
    )
    p.add_argument("--output", type=Path, help="JSON file to write")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: the server or perf_analyzer cannot be used, and stderr says why."""
    options = parser().parse_args(argv)
    shown = inputs.pictures(16, 1920, 1080)
    rows: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    try:
        offered = placement.choose(placement.read(options.repository), options.resolutions)
        for served in placement.adjusted(offered, front_settings(options)):
            found = []
            for row, more in measure_server(options, served, shown):
                found.append(row)
                details.append(more)
                print(json.dumps(row), json.dumps(more), sep="\n", file=sys.stderr, flush=True)
            frames, variant = shown[: options.cameras], served.variant
            alone = engines_fps(options.repository, variant, frames, options.classes, PICKS, options.seconds)
            peer = transformers_fps(
                options.checkpoint, variant.resolution, frames, options.classes, PICKS, options.device, options.seconds
            )
            for row in found:
                row |= {"engines_fps": alone, "of_engines": _ratio(row["fps"], alone)}
                row |= {"transformers_user_path_fps": peer, "of_transformers": _ratio(row["fps"], peer)}
                rows.append(row)
    except (AnalyzerError, ServerError) as error:
        print(f"perf.bench.end_to_end: {error}", file=sys.stderr)
        return 2
    about = {
        "versions": package_versions(),
        "hardware": machine(),
        "frames": "drawn scenes, 1920x1080 JPEG",
        "details": details,
    }
    publish("perf.bench.end_to_end", argv, "whole server", rows, options.output, **about)
    return 0


def _ratio(fps: float, other: float | None) -> float | None:
    return round(fps / other, 3) if other else None


# ---- the server
def measure_server(
    options: argparse.Namespace, served: Served, shown: Sequence[inputs.SampleFrame]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """For each number of frames under way perf_analyzer's figures of a front model with the most GPU memory that its
    server had in use so far; and what the server says of stages and models."""
    variant = served.variant
    name, before_mb = variant.front_name, gpu.used_mb()
    cosines = [c["cosine"] for a in served.artifacts for c in a.manifest.get("gate", {}).get("outputs", {}).values()]
    with tempfile.TemporaryDirectory() as folder, Analyzer() as analyzer:
        data = inputs.write_input(
            Path(folder) / "input.json",
            inputs.front_input(shown, options.classes, "bits", LOWEST, PICKS * options.classes),
        )
        front = front_settings(options)
        with EmbeddedServer(
            options.repository, resolutions=[variant.resolution], front=front
        ) as server:
            look_once(server.grpc_url, name, shown[0], options.classes)
            for in_flight in sorted(options.in_flight):
                with GpuWatch(server.metrics_url, before_mb) as watch:
                    concurrency = options.cameras * in_flight
                    # Warms caches and allocators up.
                    analyze(analyzer, server.grpc_url, name, data, concurrency, options.seconds / 4)
                    before = metrics.scrape(server.metrics_url)
                    told = analyze(analyzer, server.grpc_url, name, data, concurrency, options.seconds)
                    parts = {m.part: m.name for m in variant.sub_models}
                    own = metrics.figures(before, metrics.scrape(server.metrics_url), name, parts)
                load = {"cameras": options.cameras, "in_flight": in_flight, "classes": options.classes}
                figures = {n: round(v, 2) for n, v in watch.figures().items()}
                row = {"engine": served.engine, "resolution": variant.resolution, **load, **told}
                row |= {"mean_batch": round(own["mean_batch"], 2), "peak_mb": figures["gpu_memory_mb"]}
                row |= {"cosine": round(min(cosines), 6)}
                more = {"resolution": variant.resolution, **load, **{n: round(v, 2) for n, v in own.items()}, **figures}
                yield row, more | {"variant": variant.to_dict(), "log": server.warnings[:10]}


def look_once(url: str, model: str, picture: inputs.SampleFrame, classes: int) -> None:
    """The first call of all models. Raises ServerError unless it gives all detections asked for, each with its mask."""
    wanted = PICKS * classes
    with Client(url, model=model, timeout=120) as client:
        names = inputs.classes_of(picture, classes)
        found = client.detect(picture.jpeg, names, threshold=LOWEST, max_detections=wanted, mask_format="bits")
    if len(found) != wanted or len(found.mask_bits) != wanted:
        raise ServerError(
            f"{model}: expected {wanted} detections with masks, got {len(found)} with {len(found.mask_bits)}"
        )


def analyze(analyzer: Analyzer, url: str, model: str, data: Path, concurrency: int, seconds: float) -> dict[str, float]:
    """perf_analyzer's own throughput and latencies (ms), the mean of three windows. Raises AnalyzerError."""
    report = data.with_suffix(".csv")
    command = [analyzer.program, "-m", model, "-u", url, "-i", "grpc", "--input-data", str(data), "-f", str(report)]
    command += [
        "--concurrency-range",
        str(concurrency),
        "--measurement-interval",
        str(round(1e3 * seconds)),
        "--percentile",
        "95",
    ]
    command += ["--stability-percentage", "999"]  # the number of windows is fixed, not chosen by their outcome
    done = subprocess.run(command, env=analyzer.environment, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode or not report.is_file():
        raise AnalyzerError(f"perf_analyzer ended with {done.returncode}: {last_words(done.stdout + done.stderr)}")
    with report.open() as lines:
        row = next(csv.DictReader(lines))
    report.unlink()
    latencies = {f"p{p}_ms": round(float(row[f"p{p} latency"]) / 1e3, 1) for p in (50, 95, 99)}
    return {"fps": round(float(row["Inferences/Second"]), 2), **latencies, "queue_ms": float(row["Server Queue"]) / 1e3}


if __name__ == "__main__":
    sys.exit(main())
