"""Milliseconds a frame of a repository's TensorRT plans, on the inputs and against the fp32 answers of
`sam3-perf bench engines`: the same rows for one more engine.

Plans run in their own processes (`export/engines/tensorrt/host.py`), which time them with CUDA events after a warm-up,
on these inputs and never on zeros. PyTorch needs the GPU too, for the fp32 answers; it computes before the clock runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble.server import repository as placement
from ensemble.server.memory import MB
from ensemble.spec import ENGINES, Variant
from export import checkpoint
from export.engines.tensorrt.host import PlanProcess, TensorRT, open_plan
from perf import record
from perf.bench.engines.candidates import TIMED_PARTS, Outputs, Work
from perf.bench.engines.cases import (
    COLUMNS,
    MOST_PAIRS,
    PROMPTS,
    TEXT,
    VISION,
    Case,
    Row,
    Truth,
    add_case_options,
    cases,
)
from perf.bench.timing import require_gpu
from perf.console import make_parser, wide_console

Arrays = dict[str, np.ndarray]
Call = tuple[str, Arrays]
"""A part and its inputs."""
WARM_UP = 5
EXAMPLES = """examples:
  sam3-perf bench plans --repository build/plans --checkpoint random
  sam3-perf bench plans --repository build/plans --resolution 672 --classes 4 --layers 20"""
log = logging.getLogger(__name__)


@dataclass
class Clock:
    """Times calls of plans and adds them up."""

    plans: Mapping[str, PlanProcess]
    repeats: int

    def outputs(self, part: str, feed: Arrays) -> Arrays:
        return self.plans[part](feed)

    def measured(self, calls: Sequence[Call]) -> tuple[float, tuple[float, float], float]:
        """Milliseconds of all `calls` together, their fastest and slowest, and the activations (MB) of the parts that
        were called."""
        taken = [(part, self.plans[part].time(feed, WARM_UP, self.repeats)) for part, feed in calls]
        memory = sum({part: answer["activation_mb"] for part, answer in taken}.values())
        fastest, slowest = (sum(answer["spread_ms"][i] for _, answer in taken) for i in (0, 1))
        return sum(answer["ms"] for _, answer in taken), (fastest, slowest), memory


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: no GPU, no plans or no TensorRT, and stderr says what is missing."""
    parser = make_parser("bench plans", __doc__, EXAMPLES)
    parser.add_argument("--repository", type=Path, required=True, help="written by sam3-export --engine tensorrt")
    parser.add_argument("--resolution", type=int, nargs="+", help="default: all that the repository has")
    parser.add_argument("--checkpoint", default="random", help="what the plans were made from; default %(default)s")
    add_case_options(parser)
    parser.add_argument("--repeats", type=int, default=20, help="timed executions; default %(default)s")
    parser.add_argument("--layers", type=int, default=0, help="also list that many of each plan's longest layers")
    parser.add_argument("--tensorrt-python", default="", help="Python with TensorRT; default SAM3_TENSORRT_PYTHON")
    record.add_output(parser)
    options = parser.parse_args(argv)
    require_gpu(parser)
    settings = TensorRT(options.tensorrt_python)
    try:
        there = placement.read(options.repository)
        served = placement.choose(there, options.resolution or [one.variant.resolution for one in there])
        variants = [one.variant for one in served if not one.missing]
        about = settings.about()
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if not variants:
        parser.error(
            f"expected plans in {options.repository}, found none that are whole; write them with sam3-export --engine"
            " tensorrt"
        )
    source = checkpoint.load(options.checkpoint).model
    data = record.new(parser.prog, argv, tensorrt=about["tensorrt"]) | {"built_for": dict(about)}
    data |= {"plans": manifests(options.repository, variants), "rows": []}
    with torch.no_grad():
        for variant in variants:
            for row in measure(options, variant, source, settings):
                data["rows"].append(row)
                record.write(options.output, data)
                log.info("%s", json.dumps(row))
    record.publish(options.output, data, f"{data['rows'][0]['engine']}, one GPU", COLUMNS)
    return 0


def manifests(repository: Path, variants: Sequence[Variant]) -> dict[str, Any]:
    """What each plan's manifest says of the build and of the gate."""
    kept, found = ("precision", "bytes", "build_seconds", "build", "gate"), {}
    for model in (model for variant in variants for model in variant.sub_models):
        manifest = json.loads((repository / model.name / "manifest.json").read_text())
        found[model.name] = {name: manifest[name] for name in kept}
    return found


def measure(options: argparse.Namespace, variant: Variant, source: Any, settings: TensorRT) -> Iterator[Row]:
    """The rows of one resolution. `peak_mb` is what the plans' contexts and outputs need beside weights and inputs, for
    the plan's largest shapes; `spread_ms` are the fastest and the slowest execution, per frame."""
    batches = sorted({min(b, variant.max_batch) for b in options.batches}, reverse=True)
    truth = Truth(source, variant.resolution, batches[0], "cuda")
    engine = f"tensorrt {settings.about()['tensorrt']}"
    with contextlib.ExitStack() as opened:
        artifact = ENGINES["tensorrt"].artifact
        paths = {part: options.repository / getattr(variant, part).name / "1" / artifact for part in TIMED_PARTS}
        clock = Clock(
            {part: opened.enter_context(open_plan(path, settings)) for part, path in paths.items()}, options.repeats
        )
        prompts = min(PROMPTS, variant.max_pairs)
        for case in cases(truth, batches, options.classes, options.present, prompts=prompts):
            calls, found = answer(clock, case)
            cosines = case.cosines(tensors(found, truth.device))
            ms, spread, activations = clock.measured(calls)
            memory = activations + sum(array.nbytes for array in found.values()) / MB
            a_frame = tuple(round(value / case.batch, 4) for value in spread)
            row = case.row(engine, variant.resolution, cosines, ms, memory, spread_ms=a_frame)
            yield row | {"precision": variant.precision}
        for part in clock.plans if options.layers else ():
            layers = clock.plans[part].profile(last_feed(part, clock, truth, batches[0]))[: options.layers]
            wide_console().print(record.sheet(layers, f"{part}: the longest layers", ("layer", "ms")))


def answer(clock: Clock, case: Case) -> tuple[list[Call], Arrays]:
    """All calls of a case, and the outputs of the first."""
    found = [calls_of(clock, case.part, case.features, work) for work in case.works]
    return [call for calls, _ in found for call in calls], found[0][1]


def calls_of(clock: Clock, part: str, features: Outputs, work: Work) -> tuple[list[Call], Arrays]:
    """The calls that answer `work`, and their outputs: one of an encoder, or one of the decoder and, where a pair is
    present, one of the mask head."""
    if part in (VISION, TEXT):
        name = "pixel_values" if part == VISION else "input_ids"
        feed = {name: host(getattr(work, name))}
        return [(part, feed)], clock.outputs(part, feed)
    prompt = {"prompt_features": host(work.prompt_features), "prompt_mask": host(work.prompt_mask)}
    feed = {"fpn_2": host(features["fpn_2"]), "image_index": host(work.image_index), **prompt}
    calls, out = [("decoder", feed)], clock.outputs("decoder", feed)
    if len(work.present):
        images = host(work.image_index.index_select(0, work.present))
        maps = {name: host(features[name]) for name in ("fpn_0", "fpn_1")}
        rows = {"image_index": images, "pair_index": host(work.present), "query_index": host(work.query_index)}
        feed = {**maps, "memory": out["memory"], "query_features": out["query_features"], **prompt, **rows}
        calls.append(("mask_head", feed))
        out = out | clock.outputs("mask_head", feed)
    return calls, out


def last_feed(part: str, clock: Clock, truth: Truth, batch: int) -> Arrays:
    """Inputs of one call of `part` at its largest, to profile."""
    work = truth.work(batch, max(1, MOST_PAIRS // batch), 1.0)
    calls, _ = calls_of(clock, part, truth.half_features(batch), work)
    return dict(calls)[part]


def host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def tensors(arrays: Arrays, device: str) -> Outputs:
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}


if __name__ == "__main__":
    raise SystemExit(main())
