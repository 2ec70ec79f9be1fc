"""`sam3-perf sweep`: a served repository goes in, one row per point comes out: perf_analyzer's throughput and latency,
and the server's own figures of the same window.

`perf/sweep/window.py` measures a point. One that is in the output already is not measured again, so an interrupted
sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ensemble.server.requirements import ServerError
from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD, Variant
from perf import results
from perf.console import size
from perf.report.tables import front_rows, repeatability
from perf.sweep import metrics
from perf.sweep.analyzer import Analyzer, AnalyzerError
from perf.sweep.points import FRONT, Point, points
from perf.sweep.target import Target, add_server_options, offered, serving
from perf.sweep.window import Load, check_client, measure

GIVEN_UP = "given up"
EXAMPLES = """examples:
  sam3-perf sweep --repository build/repository --cameras 1 4 --classes 1 4 --output build/perf/sweep.json
  sam3-perf sweep --grpc-url gpu:8001 --http-url gpu:8000 --metrics-url gpu:8002 --rates 16 32 --protocols grpc http
  sam3-perf sweep --repository build/repository --batches 1 2 4 8 --shared-memory system    the vision encoder alone as well
  sam3-perf sweep --repository build/gpu --alone --cameras 1 8 --classes 4 --requests 96 --frame 1920x1080    on a GPU, in minutes"""


def sweep(
    wanted: Sequence[Point],
    found: results.Results,
    output: Path,
    one: Callable[[Point], dict[str, Any]],
    progress: Callable[[Point], None] = lambda point: None,
) -> list[str]:
    """Measures what is not in `found` yet and writes `output` after each of them; returns what went wrong, a sentence
    per point.

    Two failures in a row end it: then the server is gone, not a point bad.
    """
    problems: list[str] = []
    in_a_row = 0
    for point in remaining(wanted, found):
        try:
            found.rows.append(one(point))
            results.write(found, output)
            in_a_row = 0
        except (AnalyzerError, metrics.MetricsError) as error:
            problems.append(f"{point.label}: {error}")
            in_a_row += 1
            if in_a_row == 2:
                done = f"the {len(found.rows)} finished points are in {output}"
                problems.append(f"{GIVEN_UP}; {done}: run the same command again to go on")
                break
        progress(point)
    return problems


def resume(output: Path, fresh: results.Results, restart: bool) -> results.Results:
    """What is to be gone on with: the rows in `output` if they are of this machine and these versions. Raises
    ResultsError."""
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
        prog="sam3-perf sweep",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_server_options(p)
    p.add_argument("--resolutions", type=int, nargs="+", help="default: all that the server has")
    p.add_argument(
        "--cameras", type=int, nargs="+", default=[1, 2, 4, 8], help="requests under way at once; default 1 2 4 8"
    )
    p.add_argument("--classes", type=int, nargs="+", default=[1, 4], help="default 1 4")
    p.add_argument(
        "--rates", type=float, nargs="*", default=[], help="also at these fixed rates, frames a second of all cameras"
    )
    p.add_argument(
        "--batches", type=int, nargs="*", default=[], help="also the vision encoder alone, with these batches"
    )
    p.add_argument("--protocols", nargs="+", choices=("grpc", "http"), default=["grpc"])
    p.add_argument("--masks", default="bits", help="mask format asked for: none, bits, rle; default %(default)s")
    p.add_argument(
        "--threshold", type=float, default=DEFAULT_THRESHOLD, help="least score asked for; default %(default)s"
    )
    p.add_argument(
        "--max-detections", type=int, default=DEFAULT_MAX_DETECTIONS, help="most answers a frame; default %(default)s"
    )
    p.add_argument("--frame", default="640x360", help="size of the cameras' frames; default %(default)s")
    p.add_argument(
        "--shared-memory", choices=("none", "system", "cuda"), default="none", help="for the vision encoder's tensors"
    )
    p.add_argument("--requests", type=int, default=48, help="of one window; default %(default)s")
    p.add_argument(
        "--alone",
        action="store_true",
        help="load one resolution at a time (with --repository): then the GPU's memory is that of one resolution",
    )
    p.add_argument(
        "--turns", type=int, default=1, help="go over all points so many times; reports take the fastest. Default 1"
    )
    p.add_argument("--point-timeout", type=float, default=300, help="seconds; default %(default)s")
    p.add_argument(
        "--check-client",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="also compare the project's client with perf_analyzer, so many times a point (columns client_...)",
    )
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
        with Analyzer() as analyzer:
            wanted, found = plan(options, results.command_line("sweep", argv), analyzer.version)
            problems = _measure_all(console, options, analyzer, wanted, found)
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


def plan(options: argparse.Namespace, command: str, version: str) -> tuple[list[Point], results.Results]:
    """The points of the command line, and the results to go on with. Raises ServerError, ValueError."""
    if options.alone and options.repository is None:
        raise ValueError("--alone starts a server for each resolution: it needs --repository")
    have, describe = offered(options)
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
    unknown = sorted({f"sam3_r{p.resolution}" for p in wanted if p.resolution not in have})
    if unknown or not wanted:
        loaded = ", ".join(f"sam3_r{r}" for r in sorted(have))
        raise ServerError(
            f"not loaded: {', '.join(unknown)}; the server has {loaded or 'no front model'}; "
            "export what is missing with sam3-export --resolution ..., or leave it out with --resolutions"
        )
    fresh = results.here(command, perf_analyzer=version)
    fresh.setting = load_of(options).setting() | describe(wanted[0].resolution)
    return wanted, resume(options.output, fresh, options.restart)


def load_of(options: argparse.Namespace) -> Load:
    return Load(options.requests, *size(options.frame), options.threshold, options.max_detections)


def _measure_all(
    console: Console, options: argparse.Namespace, analyzer: Analyzer, wanted: Sequence[Point], found: results.Results
) -> list[str]:
    """Starts the servers in turn and measures what is not there yet; returns what went wrong."""
    problems: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("starting", total=len(wanted))
        for group in groups(wanted, options.alone):
            rest = remaining(group, found)
            progress.update(task, advance=len(group) - len(rest))
            if not rest:
                continue
            with serving(options, sorted({p.resolution for p in group}) if options.alone else ()) as target:
                one = partial(_row, options, analyzer, target, target.fronts(), Path(folder))
                problems += sweep(
                    rest, found, options.output, one, lambda p: progress.update(task, advance=1, description=p.label)
                )
            if len(problems) > 1 and problems[-1].startswith(GIVEN_UP):
                break
    return problems


def _row(
    options: argparse.Namespace,
    analyzer: Analyzer,
    target: Target,
    fronts: Mapping[str, Variant],
    folder: Path,
    point: Point,
) -> dict[str, Any]:
    load, timeout = load_of(options), options.point_timeout
    row = measure(analyzer, target, point, fronts, folder, load, timeout)
    if options.check_client and point.target == FRONT and not point.rate:
        row |= check_client(analyzer, target, point, folder, load, timeout, options.check_client)
    return row


def groups(wanted: Sequence[Point], alone: bool) -> list[list[Point]]:
    """What one server measures: all of it, or one resolution's points."""
    if not alone:
        return [list(wanted)]
    return [[p for p in wanted if p.resolution == r] for r in dict.fromkeys(p.resolution for p in wanted)]


def remaining(wanted: Sequence[Point], found: results.Results) -> list[Point]:
    done = {tuple(row.get(f.name) for f in fields(Point)) for row in found.rows}
    return [point for point in wanted if point.key() not in done]


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
