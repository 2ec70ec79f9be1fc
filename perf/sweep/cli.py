"""A server's throughput and latency over resolutions, cameras and classes, as perf_analyzer sees them, with the
server's own figures of the same windows.

The output has a row a point. A point that is in it already is not measured again, so that an interrupted sweep goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ensemble.server.requirements import ServerError
from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD
from perf import record
from perf.console import make_parser, refuse, size
from perf.results import Results
from perf.sweep.analyzer import Analyzer, AnalyzerError
from perf.sweep.points import Point, front_parts, points
from perf.sweep.run import measure_all, resume
from perf.sweep.target import PLAIN, add_server_options, addressed, offered
from perf.sweep.window import Load
from perf.tables import front_rows, repeatability

EXAMPLES = """examples:
  sam3-perf sweep --repository build/repository --cameras 1 4 --classes 1 4 --output build/perf/sweep.json
  sam3-perf sweep --url gpu:8001 --rates 16 32 --protocols grpc http
  sam3-perf sweep --repository build/repository --batches 1 2 4 8 --shared-memory system    the vision encoder as well
  sam3-perf sweep --repository build/gpu --alone --cameras 1 8 --classes 4 --requests 96 --frame 1920x1080   on a GPU"""
log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    p = make_parser("sweep", __doc__, EXAMPLES)
    add_server_options(p)
    p.add_argument("--resolution", type=int, nargs="+", help="default: all that the server has")
    p.add_argument(
        "--precision",
        choices=(PLAIN, "int8", "fp8"),
        help="of a server that has several; plain is fp16 or fp32. Default: what there is, plain first",
    )
    p.add_argument(
        "--cameras", type=int, nargs="+", default=[1, 2, 4, 8], help="requests under way at once; default 1 2 4 8"
    )
    p.add_argument("--classes", type=int, nargs="+", default=[1, 4], help="default 1 4")
    p.add_argument(
        "--rates", type=float, nargs="*", default=[], help="also at these fixed rates, frames a second of all cameras"
    )
    p.add_argument(
        "--batches",
        type=int,
        nargs="*",
        default=[],
        help="also the vision encoder alone, with these batches; a server at --url needs sam3-serve --sub-models",
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
    record.add_output(p, "JSON file, with a CSV file beside it,")
    p.add_argument("--restart", action="store_true", help="do not go on with --output, measure all of it again")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: all points measured; 1: some not, and stderr says why; 2: nothing could be measured."""
    p = parser()
    options = p.parse_args(argv)
    try:
        with Analyzer() as analyzer:
            load = Load(options.requests, *size(options.frame), options.threshold, options.max_detections)
            wanted, setting = plan(options, load)
            fresh = Results(**record.new(p.prog, argv, perf_analyzer=analyzer.version), setting=setting)
            found = resume(options.output, fresh, options.restart)
            problems = measure_all(options, load, analyzer, wanted, found)
    except (AnalyzerError, ServerError, ValueError) as error:
        return refuse(p.prog, error)
    except KeyboardInterrupt:
        print(json.dumps({"error": "interrupted", "output": str(options.output)}))
        return 130
    for problem in problems:
        log.error("%s", problem)
    print(json.dumps(summary(found.rows) | {"problems": problems, "output": str(options.output)}))
    return 1 if problems else 0


def plan(options: argparse.Namespace, load: Load) -> tuple[list[Point], dict[str, Any]]:
    """The points of the command line, and what their figures depend on. Raises ServerError, ValueError."""
    if options.alone and options.repository is None:
        raise ValueError("--alone starts a server for each resolution: it needs --repository")
    have, describe = offered(options)
    wanted = points(
        options.resolution or list(have),
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
        loaded = ", ".join(have[r] for r in sorted(have))
        raise ServerError(
            f"not loaded: {', '.join(unknown)}; the server has {loaded or 'no front model'}; "
            "export what is missing with sam3-export --resolution ..., or leave it out with --resolution"
        )
    wanted = [replace(point, precision=front_parts(have[point.resolution])[1]) for point in wanted]
    if options.batches and options.repository is None:
        hidden = {p.model for p in wanted} - set(addressed(options).models())
        if hidden:
            raise ServerError(
                f"the server has no model {', '.join(sorted(hidden))}; start it with sam3-serve --sub-models, or give"
                " --repository"
            )
    return wanted, load.setting() | describe(wanted[0].resolution)


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
    raise SystemExit(main())
