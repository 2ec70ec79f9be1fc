"""The whole server on one GPU, beside what its engines reach alone and beside transformers as its users run it: a repository goes in, a row per resolution comes out.

Cameras are perf_analyzer's concurrent requests over gRPC: a JPEG of 1080p and class names in, boxes and packed masks out. Every class keeps its best
`PICKS` queries, so that all pairs get masks, as if everything asked for were there; the server is stopped before its peers are timed on the same card, and
all of them see the same frames. The least cosine of the repository's artifacts with the checkpoint in fp32 stands beside the speeds.

    python -m perf.end_to_end --repository build/repository --checkpoint random --resolutions 1008 672
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clients.connection import Client
from ensemble.preflight import ServerError
from ensemble.server import EmbeddedServer
from ensemble.spec import Variant
from perf import inputs, metrics
from perf.analyzer import Analyzer, AnalyzerError, last_words
from perf.publish import publish
from perf.results import machine, package_versions
from perf.user_path import engines_fps, transformers_fps

PICKS = 20
"""Queries of each class that get masks, and detections asked for."""
LOWEST = 1e-6
"""Threshold that every query passes: random weights know no objects."""
POOL = "0:4294967296"
"""GPU 0's pool for tensors between models: 16 frames under way at 1008, their decoder memory and a margin."""
WINDOW_MS = 4000
VARIANT = re.compile(r'key: "variant", value: \{ string_value: (".*") \}')


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m perf.end_to_end", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--repository", type=Path, required=True, help="written by sam3-export for the engine to measure")
    p.add_argument("--checkpoint", required=True, help="that the repository was made from: folder, hub name or `random`")
    p.add_argument("--resolutions", type=int, nargs="+", default=[1008, 672], help="default 1008 672")
    p.add_argument("--cameras", type=int, default=8, help="default %(default)s")
    p.add_argument("--in-flight", type=int, nargs="+", default=[1, 2], help="frames of one camera under way; default 1 2")
    p.add_argument("--classes", type=int, default=4, help="default %(default)s")
    p.add_argument("--device", default="cuda", help="of the peers; default %(default)s")
    p.add_argument("--output", type=Path, help="JSON file to write")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: the server or perf_analyzer cannot be used, and stderr says why."""
    options = parser().parse_args(argv)
    shown = inputs.pictures(16, 1920, 1080)
    rows, details = [], []
    try:
        for resolution in options.resolutions:
            found = [measure_server(options, resolution, n, shown) for n in options.in_flight]
            variant = Variant.from_dict(found[0]["details"]["variant"])
            alone = engines_fps(options.repository, variant, shown[: options.cameras], options.classes, PICKS)
            peer = transformers_fps(
                options.checkpoint, resolution, shown[: options.cameras], options.classes, PICKS, options.device
            )
            for row in found:
                row |= {"engines_fps": alone, "transformers_user_path_fps": peer}
                row |= {"of_engines": _ratio(row["fps"], alone), "of_transformers": _ratio(row["fps"], peer)}
                print(json.dumps(row), file=sys.stderr, flush=True)
                details.append(row.pop("details"))
                rows.append(row)
    except (AnalyzerError, ServerError) as error:
        print(f"perf.end_to_end: {error}", file=sys.stderr)
        return 2
    about = {"versions": package_versions(), "hardware": machine(), "frames": "drawn scenes, 1920x1080 JPEG", "details": details}
    publish("perf.end_to_end", argv, "whole server", rows, options.output, **about)
    return 0


def _ratio(fps: float, other: float | None) -> float | None:
    return round(fps / other, 3) if other else None


# ---- the server
def measure_server(
    options: argparse.Namespace, resolution: int, in_flight: int, shown: Sequence[inputs.Picture]
) -> dict[str, Any]:
    """One row: perf_analyzer's figures of the front model, the server's own, and the most GPU memory that was in use."""
    name = f"sam3_r{resolution}"
    with tempfile.TemporaryDirectory() as folder, Analyzer() as analyzer:
        repository, variant, engine, cosine = one_resolution(options.repository, name, Path(folder) / "repository")
        pool = [f"--cuda-memory-pool-byte-size={POOL}"] if options.device == "cuda" else []
        log: list[str] = []
        with EmbeddedServer(repository, log=log.append, arguments=pool) as server, gpu_memory() as peak:
            detections = look_once(server.grpc_url, name, shown[0], options.classes)
            data = inputs.write_input(Path(folder) / "input.json", full_input(shown, options.classes))
            concurrency = options.cameras * in_flight
            analyze(
                analyzer, server.grpc_url, name, data, concurrency, Path(folder), WINDOW_MS // 4
            )  # warms caches and allocators up
            before = metrics.scrape(server.metrics_url)
            told = analyze(analyzer, server.grpc_url, name, data, concurrency, Path(folder), WINDOW_MS)
            parts = {m.part: m.name for m in variant.sub_models}
            own = metrics.figures(before, metrics.scrape(server.metrics_url), name, parts)
        return {
            "engine": engine,
            "resolution": resolution,
            "cameras": options.cameras,
            "in_flight": in_flight,
            "classes": options.classes,
            **told,
            "detections": detections,
            "cosine": cosine,
            "peak_mb": peak[0] or None,
            "mean_batch": round(own["mean_batch"], 2),
            "details": {name: round(value, 2) for name, value in own.items()} | {"log": log[:10], "variant": variant.to_dict()},
        }


def one_resolution(root: Path, front: str, folder: Path) -> tuple[Path, Variant, str, float]:
    """A repository of links to the models of one front model, so that memory is theirs alone; its variant, engine and least cosine."""
    config = root / front / "config.pbtxt"
    if not config.is_file():
        raise ServerError(f"expected {config}; write it with sam3-export --repository {root}")
    found = VARIANT.search(config.read_text())
    if found is None:
        raise ServerError(f"{config}: expected a parameter `variant`; write it again with sam3-export --repository {root}")
    variant = Variant.from_dict(json.loads(json.loads(found[1])))
    folder.mkdir()
    cosines, engine = [], ""
    for model in (*variant.sub_models, variant.front):
        (folder / model.name).symlink_to((root / model.name).resolve())
        manifest = root / model.name / "manifest.json"
        if manifest.is_file():
            data = json.loads(manifest.read_text())
            engine = data["engine"]
            cosines += [o["cosine"] for o in data["gate"]["outputs"].values()]
    return folder, variant, engine, round(min(cosines), 6)


def look_once(url: str, model: str, picture: inputs.Picture, classes: int) -> int:
    """Detections of one frame, each with a mask; the first call of all models. Raises ServerError where masks are missing."""
    with Client(url, model=model, timeout=120) as client:
        names = inputs.classes_of(picture, classes)
        found = client.detect(picture.jpeg, names, threshold=LOWEST, max_detections=PICKS, mask_format="bits")
    if len(found) != PICKS or len(found.mask_bits) != PICKS:
        raise ServerError(f"{model}: expected {PICKS} detections with masks, got {len(found)} with {len(found.mask_bits)}")
    return len(found)


def full_input(shown: Sequence[inputs.Picture], classes: int) -> dict[str, Any]:
    """perf_analyzer's input with every class' best queries wanted."""
    content = inputs.front_input(shown, classes, "bits")
    for step in content["data"]:
        step["threshold"] = {"content": [LOWEST], "shape": [1]}
        step["max_detections"] = {"content": [PICKS], "shape": [1]}
    return content


def analyze(
    analyzer: Analyzer, url: str, model: str, data: Path, concurrency: int, folder: Path, window_ms: int
) -> dict[str, float]:
    """perf_analyzer's own throughput and latencies (ms) over three windows. Raises AnalyzerError."""
    report = folder / "report.csv"
    command = [analyzer.program, "-m", model, "-u", url, "-i", "grpc", "--input-data", str(data), "-f", str(report)]
    command += ["--concurrency-range", str(concurrency), "--measurement-interval", str(window_ms), "--percentile", "95"]
    command += [
        "--stability-percentage",
        "999",
    ]  # always the mean of three windows: their number is fixed, not chosen by their outcome
    done = subprocess.run(command, env=analyzer.environment, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode or not report.is_file():
        raise AnalyzerError(f"perf_analyzer ended with {done.returncode}: {last_words(done.stdout + done.stderr)}")
    with report.open() as lines:
        row = next(csv.DictReader(lines))
    report.unlink()
    latencies = {f"p{p}_ms": round(float(row[f"p{p} latency"]) / 1e3, 1) for p in (50, 95, 99)}
    return {"fps": round(float(row["Inferences/Second"]), 2), **latencies, "queue_ms": float(row["Server Queue"]) / 1e3}


@contextmanager
def gpu_memory() -> Iterator[list[int]]:
    """The most memory (MB) in use on the first visible GPU while the block runs, in a list of one; 0 without a GPU."""
    peak, stop = [0], threading.Event()
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={_gpu_id()}"]

    def watch() -> None:
        while not stop.is_set():
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            except (OSError, subprocess.SubprocessError):
                return
            peak[0] = max(peak[0], int(done.stdout.split()[0]))
            stop.wait(0.1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _gpu_id() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"


if __name__ == "__main__":
    sys.exit(main())
