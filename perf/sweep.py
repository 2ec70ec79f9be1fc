"""`sam3-perf sweep`: a served repository goes in, one row per point comes out: perf_analyzer's throughput and latency, and the server's own figures of the same window.

Every window is a fixed number of requests with drawn frames in them, after a few that warm caches and allocators up. A point that is in the output already
is not measured again, so an interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ensemble.preflight import ServerError
from perf import inputs, metrics, results
from perf.analyzer import Analyzer, AnalyzerError
from perf.points import FRONT, Point, points
from perf.tables import front_rows, repeatability
from perf.target import Target, check_loaded, serving

PARTS = ("vision_encoder", "text_encoder", "geometry_encoder", "decoder", "mask_head")
EXAMPLES = """examples:
  sam3-perf sweep --repository build/repository --cameras 1 4 --classes 1 4 --output build/perf/sweep.json
  sam3-perf sweep --grpc-url gpu:8001 --http-url gpu:8000 --metrics-url gpu:8002 --rates 16 32 --protocols grpc http
  sam3-perf sweep --repository build/repository --batches 1 2 4 8 --shared-memory system    the vision encoder alone as well"""


def measure(
    analyzer: Analyzer, target: Target, point: Point, models: Sequence[str], folder: Path, requests: int, timeout: float
) -> dict[str, Any]:
    """The row of one point. Raises AnalyzerError, MetricsError."""
    shown = inputs.pictures()
    content = (
        inputs.front_input(shown, point.classes, point.masks)
        if point.target == FRONT
        else inputs.vision_input(shown, point.resolution)
    )
    arguments = point.arguments(target.urls, inputs.write_input(folder / "input.json", content))
    fewest = max(2 * point.cameras, 4, math.ceil(point.rate))  # perf_analyzer refuses fewer requests than it sends in a second
    analyzer.run(arguments, requests=fewest, batch=point.batch, log=False, timeout=timeout)
    parts = sub_models(models, point.resolution)
    before = metrics.scrape(target.metrics)
    count, log = max(requests, fewest), point.target == FRONT
    window = analyzer.run(arguments, requests=count, batch=point.batch, log=log, timeout=timeout)
    told = metrics.figures(before, metrics.scrape(target.metrics), point.model, parts)
    row = asdict(point) | asdict(window) | told
    row["load"] = os.getloadavg()[0]  # of the last minute: above the cores' number plus this sweep's own, others were at work
    row["server_memory_mb"] = metrics.process_memory_mb(target.pid)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


def sub_models(models: Sequence[str], resolution: int) -> dict[str, str]:
    """part -> the loaded model that serves it at this resolution."""
    wanted = {part: f"sam3_{part}_r{resolution}" for part in PARTS} | {"text_encoder": "sam3_text_encoder"}
    return {p: m for p, stem in wanted.items() for m in models if m == stem or m.startswith(f"{stem}_")}


async def client_fps(point: Point, url: str, requests: int) -> float:
    """Frames a second that the project's own client gets from the same load: `point.cameras` tasks that wait for their answers."""
    from clients.connection import AsyncClient

    shown = inputs.pictures()
    turns = iter(range(requests))

    async with AsyncClient(url, protocol=point.protocol, model=point.model, timeout=120) as client:

        async def camera() -> None:
            for turn in turns:
                picture = shown[turn % len(shown)]
                await client.detect(picture.jpeg, inputs.classes_of(picture, point.classes), mask_format=point.masks)

        start = time.perf_counter()
        await asyncio.gather(*(camera() for _ in range(point.cameras)))
        return requests / (time.perf_counter() - start)


def sweep(
    wanted: Sequence[Point],
    found: results.Results,
    output: Path,
    one: Callable[[Point], dict[str, Any]],
    progress: Callable[[Point], None] = lambda point: None,
) -> list[str]:
    """Measures what is not in `found` yet and writes `output` after every point; returns what went wrong, a sentence per point.

    Two failures in a row end it: then the server is gone, not a point bad.
    """
    done = {tuple(row.get(name) for name in asdict(wanted[0])) for row in found.rows} if wanted else set()
    problems: list[str] = []
    in_a_row = 0
    for point in wanted:
        if point.key() not in done:
            try:
                found.rows.append(one(point))
                results.write(found, output)
                in_a_row = 0
            except (AnalyzerError, metrics.MetricsError) as error:
                problems.append(f"{point.label}: {error}")
                in_a_row += 1
                if in_a_row == 2:
                    problems.append(
                        f"given up; the {len(found.rows)} finished points are in {output}: run the same command again to go on"
                    )
                    break
        progress(point)
    return problems


def resume(output: Path, fresh: results.Results, restart: bool) -> results.Results:
    """What is to be gone on with: the rows in `output` if they are of this machine and these versions. Raises ResultsError."""
    if restart or not output.exists():
        return fresh
    old = results.read(output)
    for name in ("machine", "versions", "setting"):
        if getattr(old, name) != getattr(fresh, name):
            raise results.ResultsError(
                f"{output} was measured with another {name}: {getattr(old, name)}, now {getattr(fresh, name)}; "
                "give another --output, or --restart to measure all of it again"
            )
    old.command = fresh.command  # which measures all of it
    return old


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="sam3-perf sweep", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--repository", type=Path, help="start the embedded server on this model repository")
    p.add_argument("--grpc-url", default="localhost:8001", help="of a server that runs already; default %(default)s")
    p.add_argument("--http-url", default="localhost:8000", help="default %(default)s")
    p.add_argument("--metrics-url", default="localhost:8002", help="default %(default)s")
    p.add_argument("--resolutions", type=int, nargs="+", help="default: all that the server has")
    p.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 8], help="requests under way at once; default 1 2 4 8")
    p.add_argument("--classes", type=int, nargs="+", default=[1, 4], help="default 1 4")
    p.add_argument("--rates", type=float, nargs="*", default=[], help="also at these fixed rates, frames a second of all cameras")
    p.add_argument("--batches", type=int, nargs="*", default=[], help="also the vision encoder alone, with these batches")
    p.add_argument("--protocols", nargs="+", choices=("grpc", "http"), default=["grpc"])
    p.add_argument("--masks", default="bits", help="mask format asked for: none, bits, rle; default %(default)s")
    p.add_argument("--shared-memory", choices=("none", "system"), default="none", help="for the vision encoder's frames")
    p.add_argument("--requests", type=int, default=48, help="of one window; default %(default)s")
    p.add_argument("--turns", type=int, default=1, help="go over all points so many times; reports take the fastest. Default 1")
    p.add_argument("--point-timeout", type=float, default=300, help="seconds; default %(default)s")
    p.add_argument("--check-client", action="store_true", help="also measure with the project's client (column client_fps)")
    p.add_argument(
        "--output", type=Path, default=Path("build/perf/sweep.json"), help="JSON; a CSV beside it. Default %(default)s"
    )
    p.add_argument("--restart", action="store_true", help="do not go on with --output, measure all of it again")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: all points measured; 1: some not, and stderr says why; 2: nothing could be measured."""
    options = parser().parse_args(argv)
    console = Console(stderr=True)
    try:
        with Analyzer() as analyzer, tempfile.TemporaryDirectory() as folder, serving(options) as target:
            models = target.models()
            have = sorted((int(m.removeprefix("sam3_r")) for m in models if m.removeprefix("sam3_r").isdigit()), reverse=True)
            wanted = points(
                options.resolutions or have,
                options.cameras,
                options.classes,
                batches=options.batches,
                rates=options.rates,
                protocols=options.protocols,
                masks=options.masks,
                shared_memory=options.shared_memory,
                turns=options.turns,
            )
            check_loaded(wanted, models)
            fresh = results.here(results.command_line("sweep", argv), perf_analyzer=analyzer.version)
            fresh.setting = {"requests": options.requests, "frames": f"{inputs.FRAMES} drawn scenes, 640x360 JPEG"}
            fresh.setting |= target.about(f"sam3_r{wanted[0].resolution}")
            found = resume(options.output, fresh, options.restart)

            def one(point: Point) -> dict[str, Any]:
                row = measure(analyzer, target, point, models, Path(folder), options.requests, options.point_timeout)
                if options.check_client and point.target == FRONT and not point.rate:
                    url = target.urls[point.protocol]
                    row["client_fps"] = round(asyncio.run(client_fps(point, url, row["requests"])), 3)
                return row

            problems = _with_bar(console, wanted, found, options.output, one)
    except (AnalyzerError, ServerError, ValueError) as error:
        print(f"sam3-perf sweep: {error}", file=sys.stderr)
        print(json.dumps({"error": str(error)}))
        return 2
    except KeyboardInterrupt:
        print(json.dumps({"error": "interrupted", "output": str(options.output)}))
        return 130
    for problem in problems:
        console.print(problem, style="red", markup=False)
    print(json.dumps(summary(found.rows) | {"problems": problems, "output": str(options.output)}))
    return 1 if problems else 0


def _with_bar(
    console: Console, wanted: Sequence[Point], found: results.Results, output: Path, one: Callable[[Point], dict[str, Any]]
) -> list[str]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=len(wanted))
        return sweep(wanted, found, output, one, lambda p: progress.update(task, advance=1, description=p.label))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last line: points, and the best throughput of the front model with its point."""
    front = front_rows(rows)
    best = max(front, key=lambda row: row["fps"], default=None)
    kept = ("resolution", "cameras", "classes", "fps", "p95_ms", "mean_batch")
    return {
        "points": len(rows),
        "ratios_repeat_within": repeatability(rows),
        "best": {name: best[name] for name in kept} if best else None,
    }


if __name__ == "__main__":
    sys.exit(main())
