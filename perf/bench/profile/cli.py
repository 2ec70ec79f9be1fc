"""Where the time of one resolution goes: a table of stages, a table of kernels, and a trace for Perfetto.

The sub-models run in this process, in the server's own flow (`ensemble/pipeline.py`) on drawn frames, under the
engine's profiler: no server, no transport, one clock. Beside the milliseconds stands the least that each stage could
take on this machine: its arithmetic (`perf/capacity/model.py`) at the speed of a plain product of matrices, or its
weights and tensors at the speed of a copy, whichever takes longer.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.progress import track
from rich.table import Table

from ensemble.pipeline import Job, Pipeline
from ensemble.preprocess.cpu import decode, to_pixel_values
from ensemble.prompts import PromptTokenizer
from ensemble.records import ModelSpec
from ensemble.request import FrameRequest
from ensemble.server import repository as placement
from ensemble.server.architecture import Architecture
from ensemble.server.repository import Served
from ensemble.server.requirements import ServerError
from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD, Variant
from perf import record
from perf.bench.profile.bounds import bounds, operations, traffic
from perf.bench.profile.onnx import OnnxSessions
from perf.console import make_parser, refuse, wide_console
from perf.sweep import inputs

EXAMPLES = """examples:
  sam3-perf bench profile --repository build/repository --resolution 252 --classes 4 --frames 8
  sam3-perf bench profile --repository build/gpu --resolution 1008 --frames 8     aoti packages on the GPU
  nsys profile -t cuda,nvtx sam3-perf bench profile --repository build/gpu --resolution 1008 --nvtx
  then open build/perf/profile/trace.json in https://ui.perfetto.dev"""
SHOWN = 15
"""Kernels, the longest ones, in the table and in the last line."""
log = logging.getLogger(__name__)


class ProfileError(ValueError):
    """What is asked for cannot be profiled; the message says what could be."""


class Engine(Protocol):
    """Runs the sub-models for a `Pipeline` and watches them: `onnx.OnnxSessions`, `aoti.AotiPackages`."""

    def __call__(self, model: ModelSpec, tensors: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]: ...
    def annotate(self, name: str) -> AbstractContextManager[object]: ...
    def warm(self) -> None: ...
    def finish(self, trace: Path, rounds: int) -> list[dict[str, Any]]: ...
    def ceilings(self) -> dict[str, float]: ...


def find(repository: Path, resolution: int | None) -> Served:
    """The front model of that resolution; the only one where none is given. Raises ProfileError, ServerError."""
    have = {served.variant.resolution: served for served in placement.read(repository)}
    if not have:
        raise ProfileError(
            f"expected a model repository in {repository}, found no sam3_r*/config.pbtxt; write one with sam3-export"
        )
    if resolution is None and len(have) == 1:
        return next(iter(have.values()))
    if resolution not in have:
        known = ", ".join(map(str, sorted(have)))
        raise ProfileError(
            f"expected one of the resolutions in {repository} ({known}), got {resolution}; say which with --resolution"
        )
    return have[resolution]


def open_engine(served: Served, repository: Path, folder: Path, device: str, nvtx: bool) -> Engine:
    """What runs the artifacts of that front model. Raises ProfileError where they are missing or nothing here runs
    them."""
    if served.missing:
        raise ProfileError(
            f"expected {served.missing[0].path}, found no such file; write it with sam3-export --engine {served.engine}"
        )
    if served.engine == "aoti" and not (nvtx and device == "cpu"):
        from perf.bench.profile.aoti import AotiPackages  # needs PyTorch

        return AotiPackages(repository, device, nvtx)
    if served.engine == "onnxruntime" and not nvtx and device == "cpu":
        return OnnxSessions(repository, folder)
    what = f"{served.engine}{' on a GPU' if device == 'cuda' else ''}{' for Nsight Systems' if nvtx else ''}"
    raise ProfileError(
        f"expected engine onnxruntime on the CPU, or aoti (for Nsight Systems on a GPU), got {what}; trtexec"
        " --dumpProfile profiles a plan"
    )


def run(
    variant: Variant, repository: Path, engine: Engine, frames: int, classes: int, rounds: int, asked: Mapping[str, Any]
) -> dict[str, float]:
    """Milliseconds of each stage per round (median), after one round that warms up. `asked` goes into every
    `FrameRequest`."""
    length = variant.checkpoint.context_length
    tokenizer = PromptTokenizer(repository / variant.text_encoder.name / "1" / "tokenizer.json", length)
    shown = inputs.pictures(frames)
    times: dict[str, list[float]] = defaultdict(list)
    for turn in track(range(rounds + 1), description="rounds", console=wide_console(), transient=True):
        if turn == 1:
            engine.warm()
        # A new one, so that every round encodes its text.
        pipeline = Pipeline(variant, engine, annotate=engine.annotate)
        start = time.perf_counter()
        jobs, frames_read = [], []
        with engine.annotate("decode"):
            for picture in shown:
                image = decode(picture.jpeg)
                names = tuple(inputs.classes_of(picture, classes))
                request = FrameRequest(names, image=picture.jpeg, mask_format="bits", **asked)
                jobs.append(Job(request, [tokenizer(name) for name in names], (image.height, image.width)))
                frames_read.append(to_pixel_values(image, variant.resolution))
        decoded = time.perf_counter()
        pipeline.run(jobs, np.stack(frames_read))
        if turn:
            times["decode"].append((decoded - start) * 1e3)
            for stage, milliseconds in jobs[0].stage_ms.items():
                times[stage].append(milliseconds)
    return {stage: float(np.median(values)) for stage, values in times.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """0: profiled; 2: not possible, and stderr says why."""
    p = make_parser("bench profile", __doc__, EXAMPLES)
    p.add_argument("--repository", type=Path, default=Path("build/repository"), help="default %(default)s")
    p.add_argument("--resolution", type=int, help="default: the repository's only one")
    p.add_argument("--frames", type=int, default=1, help="of one batch; default %(default)s")
    p.add_argument("--classes", type=int, default=4, help="default %(default)s")
    p.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    record.add_output(p, "folder", suffix="")
    p.add_argument(
        "--threshold", type=float, default=DEFAULT_THRESHOLD, help="least score with a mask; default %(default)s"
    )
    p.add_argument(
        "--max-detections", type=int, default=DEFAULT_MAX_DETECTIONS, help="most masks a class; default %(default)s"
    )
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda for aoti packages, cpu for ONNX files")
    p.add_argument(
        "--nvtx", action="store_true", help="mark stages for Nsight Systems in place of the profiler (aoti on a GPU)"
    )
    options = p.parse_args(argv)
    try:
        result = record.new(p.prog, argv) | profile(options)
    except (ValueError, ServerError) as error:
        return refuse(p.prog, error)
    record.write(options.output / "profile.json", result)
    longest = result["kernels"][:SHOWN]
    tables = stage_table(result["stages"], result["ceilings"]), record.sheet(longest, "the longest kernels")
    wide_console().print(*tables)
    print(json.dumps(result | {"kernels": longest}))
    return 0


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """What is written beside the head of the file; `ms` and `launches` are of a round. Raises ProfileError,
    ServerError."""
    served = find(options.repository, options.resolution)
    variant = served.variant
    if not 1 <= options.frames <= variant.max_batch:
        raise ProfileError(f"frames must be 1 to {variant.max_batch} (the variant's max_batch), got {options.frames}")
    if options.classes < 1 or options.rounds < 1:
        raise ProfileError(f"classes and rounds must be at least 1, got {options.classes} and {options.rounds}")
    device = options.device or ("cuda" if served.engine == "aoti" else "cpu")
    options.output.mkdir(parents=True, exist_ok=True)
    engine = open_engine(served, options.repository, options.output, device, options.nvtx)
    asked = {"threshold": options.threshold, "max_detections": options.max_detections}
    stages = run(variant, options.repository, engine, options.frames, options.classes, options.rounds, asked)
    rows = engine.finish(options.output / "trace.json", options.rounds)
    if not rows and not options.nvtx:
        log.warning("the profiler saw no kernel: CUPTI is not available here, or not allowed to this user")
    architecture = Architecture.of(variant.checkpoint)
    counted, limits = operations(variant, architecture, options.frames, options.classes), engine.ceilings()
    found = {"model": variant.front_name, "engine": served.engine, "device": device}
    found |= {"frames": options.frames, "classes": options.classes}
    moved = traffic(served, options.frames, options.classes)
    found |= {"stages": bounds(stages, counted, moved, limits), "ceilings": limits}
    return found | {"kernels": rows, "trace": str(options.output / "trace.json")}


def stage_table(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> Table:
    caption = f"ceilings measured here: {limits['gflop_s']:,.0f} GFLOP/s, copy {limits['copy_gb_s']:,.0f} GB/s"
    columns = ("stage", "ms a round", "GFLOP", "MB", "arithmetic ms", "memory ms", "bound", "reached")
    sheet = Table(*columns, title="stages", caption=caption)
    for row in rows:
        cells = ["-"] * 6
        if "bound" in row:
            cells = [f"{row['gflop']:,.1f}", f"{row['mb']:,.0f}", f"{row['arithmetic_ms']:.2f}"]
            cells += [f"{row['memory_ms']:.2f}", row["bound"], f"{row['of_bound']:.0%}"]
        sheet.add_row(row["stage"], f"{row['ms']:.2f}", *cells)
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
