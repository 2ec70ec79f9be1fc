"""`sam3-perf profile`: one resolution of a repository goes in, a table per stage and per kind of kernel and a trace for
Perfetto come out.

The sub-models run in this process, in the server's own flow (`ensemble/pipeline.py`) on drawn frames, under the
engine's profiler: no server, no transport, one clock. Beside the milliseconds stands the least that each stage could
take on this machine: its arithmetic (`perf/capacity/model.py`) at the speed of a plain product of matrices, or its
weights and tensors at the speed of a copy, whichever takes longer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.progress import track
from rich.table import Table

from ensemble.pipeline import Pipeline
from ensemble.preprocess.cpu import decode, to_pixel_values
from ensemble.prompts import PromptTokenizer
from ensemble.records import ModelSpec
from ensemble.request import FrameRequest
from ensemble.server import repository as placement
from ensemble.server.memory import SAM3, Architecture
from ensemble.server.repository import Served
from ensemble.server.requirements import ServerError
from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD, Variant
from perf import results
from perf.bench.profile.onnx import OnnxSessions
from perf.capacity.model import decoder_flops, mask_head_flops, text_flops, vision_flops
from perf.console import wide_console
from perf.sweep import inputs

MODEL_STAGES = ("vision", "text", "decoder", "masks")
WIDTHS = {"FP32": 4, "FP16": 2, "INT32": 4, "UINT8": 1}
EXAMPLES = """examples:
  sam3-perf profile --repository build/repository --resolution 252 --classes 4 --frames 8
  sam3-perf profile --repository build/gpu --resolution 1008 --frames 8      aoti packages on the GPU, kernel by kernel
  nsys profile -t cuda,nvtx sam3-perf profile --repository build/gpu --resolution 1008 --nvtx
  then open build/perf/profile/trace.json in https://ui.perfetto.dev"""


class ProfileError(ValueError):
    """What is asked for cannot be profiled; the message says what could be."""


class Engine(Protocol):
    """Runs the sub-models for a `Pipeline` and watches them: `profile_onnx.OnnxSessions`,
    `profile_aoti.AotiPackages`."""

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
        pipeline = Pipeline(
            variant, tokenizer, engine, annotate=engine.annotate
        )  # a new one: every round encodes its text
        start = time.perf_counter()
        jobs = []
        with engine.annotate("decode"):
            for picture in shown:
                image = decode(picture.jpeg)
                names = tuple(inputs.classes_of(picture, classes))
                request = FrameRequest(names, image=picture.jpeg, mask_format="bits", **asked)
                pixel_values = to_pixel_values(image, variant.resolution)
                jobs.append(pipeline.prepare(request, pixel_values, (image.height, image.width)))
        decoded = time.perf_counter()
        pipeline.run(jobs)
        if turn:
            times["decode"].append((decoded - start) * 1e3)
            for stage, milliseconds in jobs[0].stage_ms.items():
                times[stage].append(milliseconds)
    return {stage: float(np.median(values)) for stage, values in times.items()}


def operations(variant: Variant, a: Architecture, frames: int, classes: int) -> dict[str, float]:
    """GFLOP of a round by stage; masks counted as if every pair had some."""
    pairs, r, q = frames * classes, variant.resolution, variant.queries
    flops = {"vision": frames * vision_flops(r, a, pad_linears=False), "decoder": pairs * decoder_flops(r, a, q)}
    flops |= {"masks": pairs * mask_head_flops(r, a, q), "text": classes * text_flops(a)}
    return {stage: value / 1e9 for stage, value in flops.items()}


def traffic(served: Served, frames: int, classes: int) -> dict[str, float]:
    """Least megabytes that a stage's memory must move in a round: its weights once, its inputs and outputs once."""
    variant, sizes = (
        served.variant,
        {"images": frames, "pairs": frames * classes, "prompts": classes, "rows": frames * classes},
    )
    moved = {}
    for stage, model in zip(
        MODEL_STAGES, (variant.vision_encoder, variant.text_encoder, variant.decoder, variant.mask_head), strict=True
    ):
        tensors = [t for t in (*model.inputs, *model.outputs) if t.name != "mask_logits"]
        values = sum(math.prod(t.shape(**sizes)) * WIDTHS[t.dtype] for t in tensors)
        weights = next(a.path.stat().st_size for a in served.artifacts if a.model == model.name)
        moved[stage] = (weights + values) / 1e6
    return moved


def bounds(
    stages: Mapping[str, float], gflop: Mapping[str, float], megabytes: Mapping[str, float], limits: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A record per stage: milliseconds, the least that arithmetic and that memory would take at this machine's
    ceilings, which of them binds, and its share."""
    rows = []
    for stage, ms in stages.items():
        row: dict[str, Any] = {"stage": stage, "ms": round(ms, 3)}
        if stage in gflop:
            least = {
                "arithmetic": gflop[stage] / limits["gflop_s"] * 1e3,
                "memory": megabytes[stage] / limits["copy_gb_s"],
            }
            bound = max(least, key=lambda kind: least[kind])
            row |= {"gflop": round(gflop[stage], 1), "mb": round(megabytes[stage], 1), "bound": bound}
            row |= {f"{kind}_ms": round(value, 3) for kind, value in least.items()}
            row["of_bound"] = round(least[bound] / ms, 3) if ms else 0.0
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """0: profiled; 2: not possible, and stderr says why."""
    p = argparse.ArgumentParser(
        prog="sam3-perf profile",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--repository", type=Path, default=Path("build/repository"), help="default %(default)s")
    p.add_argument("--resolution", type=int, help="default: the repository's only one")
    p.add_argument("--frames", type=int, default=1, help="of one batch; default %(default)s")
    p.add_argument("--classes", type=int, default=4, help="default %(default)s")
    p.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    p.add_argument(
        "--checkpoint",
        type=Path,
        help="folder with config.json, for the count of operations; default: facebook/sam3's sizes",
    )
    p.add_argument("--output", type=Path, default=Path("build/perf/profile"), help="folder; default %(default)s")
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
        result = profile(options)
    except (ValueError, ServerError) as error:
        print(f"sam3-perf profile: {error}", file=sys.stderr)
        print(json.dumps({"error": str(error)}))
        return 2
    (options.output / "profile.json").write_text(json.dumps(result, indent=1) + "\n")
    wide_console().print(stage_table(result["stages"], result["ceilings"]), kernel_table(result["kernels"][:15]))
    print(json.dumps(result | {"kernels": result["kernels"][:15]}))
    return 0


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written. Raises ProfileError, ServerError."""
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
        print("the profiler saw no kernel: CUPTI is not available here, or not allowed to this user", file=sys.stderr)
    architecture = Architecture.from_checkpoint(options.checkpoint) if options.checkpoint else SAM3
    counted, limits = operations(variant, architecture, options.frames, options.classes), engine.ceilings()
    found = {"model": variant.front_name, "engine": served.engine, "device": device, "machine": results.machine()}
    found |= {"versions": results.package_versions(), "frames": options.frames, "classes": options.classes}
    found |= {
        "stages": bounds(stages, counted, traffic(served, options.frames, options.classes), limits),
        "ceilings": limits,
    }
    return found | {"kernels": rows, "trace": str(options.output / "trace.json")}


def stage_table(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> Table:
    caption = f"ceilings measured here: {limits['gflop_s']:,.0f} GFLOP/s, copy {limits['copy_gb_s']:,.0f} GB/s"
    sheet = Table(
        "stage",
        "ms a round",
        "GFLOP",
        "MB",
        "arithmetic ms",
        "memory ms",
        "bound",
        "reached",
        title="stages",
        caption=caption,
    )
    for row in rows:
        cells = ["-"] * 6
        if "bound" in row:
            numbers = (
                f"{row['gflop']:,.1f}",
                f"{row['mb']:,.0f}",
                f"{row['arithmetic_ms']:.2f}",
                f"{row['memory_ms']:.2f}",
            )
            cells = [*numbers, row["bound"], f"{row['of_bound']:.0%}"]
        sheet.add_row(row["stage"], f"{row['ms']:.2f}", *cells)
    return sheet


def kernel_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    sheet = Table("part", "kernel", "ms a round", "launches", "limit", title="the longest kernels")
    for row in rows:
        sheet.add_row(row["part"], row["kernel"], f"{row['ms']:.2f}", str(row["launches"]), row["limit"])
    return sheet


if __name__ == "__main__":
    sys.exit(main())
