"""Milliseconds a frame of SAM3's parts on one GPU, engine beside engine.

Everything runs in one process on the same checkpoint (by default random weights of real size) and the same tensors.
Beside each speed stands the least cosine of the outputs with the same computation in fp32, so that nothing is fast and
wrong.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import Sam3Model

from ensemble.spec import ENGINES as ARTIFACTS
from ensemble.spec import Variant
from export import checkpoint
from export.repository import VERSION
from perf import record
from perf.bench.engines.candidates import (
    ENGINES,
    TIMED_PARTS,
    Candidate,
    aoti,
    fused,
    transformers_model,
    wrappers,
)
from perf.bench.engines.cases import COLUMNS, PROMPTS, Case, Row, Truth, add_case_options, cases, sized
from perf.bench.timing import median_ms, require_gpu, with_peak
from perf.console import make_parser

EXAMPLES = """examples:
  sam3-perf bench engines --repository build/packages --resolution 1008
  sam3-perf bench engines --resolution 1008 --classes 4 --engines wrappers fused --batches 8"""
log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; an engine that fails is reported and left out. 2: no GPU, or an argument cannot be used."""
    parser = make_parser("bench engines", __doc__, EXAMPLES)
    parser.add_argument(
        "--checkpoint", default="random", help="folder, hub name, or `random` (real size); default %(default)s"
    )
    parser.add_argument("--resolution", type=int, nargs="+", default=[1008, 672], help="default 1008 672")
    add_case_options(parser)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="default: all")
    parser.add_argument(
        "--repository", type=Path, help="written from the same checkpoint by sam3-export --engine aoti, for engine aoti"
    )
    parser.add_argument(
        "--precision", choices=ARTIFACTS["aoti"].precisions, default="fp16", help="of engine aoti; default %(default)s"
    )
    parser.add_argument("--seconds", type=float, default=3600, help="begin no new measurement after that long")
    parser.add_argument(
        "--profile", type=Path, help="also write the longest kernels of each engine's parts to this file"
    )
    record.add_output(parser)
    options = parser.parse_args(argv)
    require_gpu(parser)
    if "aoti" in options.engines and options.repository is None:
        parser.error(
            "expected --repository for engine aoti; write one with sam3-export --engine aoti, or name other --engines"
        )
    data = record.new(parser.prog, argv, cuda=torch.version.cuda) | {"rows": []}
    with torch.no_grad():
        source = checkpoint.load(options.checkpoint).model
        for row in measure(source, options, "cuda", time.monotonic() + options.seconds):
            data["rows"].append(row)
            record.write(options.output, data)
            log.info("%s", json.dumps(row))
    data["rows"].sort(key=lambda r: (r["part"], -r["resolution"], r["batch"], r["classes"], -r["present"]))
    record.publish(options.output, data, "fp16, one GPU", COLUMNS)
    return 0


def measure(source: Sam3Model, options: argparse.Namespace, device: str, deadline: float) -> Iterator[Row]:
    """Rows of every engine, resolution by resolution; an engine that fails is reported and left out."""
    for resolution in options.resolution:
        truth = Truth(source, resolution, max(options.batches), device)
        for engine in options.engines:
            try:
                candidate = make(engine, source, resolution, options, device)
                own = candidate.encode if engine.startswith("transformers") else None  # its features have positions
                prompts = PROMPTS if candidate.text else 0
                loads = (options.batches, options.classes, options.present)
                for case in cases(truth, *loads, prompts=prompts, features=own):
                    if time.monotonic() > deadline:
                        return
                    precision = options.precision if engine == "aoti" else "fp16"
                    yield timed(case, engine, resolution, candidate, device, precision, options.profile)
            except Exception as error:
                log.exception("%s at %d failed: %s", engine, resolution, str(error)[:1500])
            # Its weights leave the GPU before the next one's come.
            candidate = own = case = None  # type: ignore[assignment]
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            torch.compiler.reset()


def make(engine: str, source: Sam3Model, resolution: int, options: argparse.Namespace, device: str) -> Candidate:
    """The candidate of that engine; raises FileNotFoundError where a package is missing."""
    if engine == "aoti":
        queries = source.config.detr_decoder_config.num_queries
        variant = Variant(resolution, queries=queries, precision=options.precision)
        folders = {part: options.repository / getattr(variant, part).name / VERSION for part in TIMED_PARTS}
        return aoti({part: folder / ARTIFACTS[engine].artifact for part, folder in folders.items()})
    model = sized(source, resolution)
    if engine.startswith("transformers"):
        return transformers_model(copy.deepcopy(model), engine.endswith("compiled"), device)
    return (wrappers if engine == "wrappers" else fused)(model, device)


def timed(
    case: Case,
    engine: str,
    resolution: int,
    candidate: Candidate,
    device: str,
    precision: str = "fp16",
    profile: Path | None = None,
) -> Row:
    """The row of one case: median time after warming up, memory, and cosines with the answers in fp32."""

    def call() -> object:
        return case.run(candidate)

    found, peak_mb = with_peak(lambda: case.run(candidate), device)
    cosines = case.cosines(found)
    del found
    row = case.row(engine, resolution, cosines, median_ms(call, device), peak_mb, precision=precision)
    if profile:
        write_profile(profile, row, call)
    return row


def write_profile(path: Path, row: Row, call: Callable[[], object]) -> None:
    """Appends the kernels that take longest in one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_device_time_total)
    about = " ".join(f"{name} {row[name]}" for name in ("engine", "part", "resolution", "batch", "classes", "present"))
    lines = [f"## {about}: ms of one call, launches, kernel"]
    lines += [f"{e.self_device_time_total / 1e3:9.3f} {e.count:5d} {e.key[:110]}" for e in events[:25]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
