"""Milliseconds a frame of a repository's TensorRT plans, on the inputs and against the fp32 answers of
`perf.bench.engines`: the same rows for one more engine.

Plans run in their own processes (`export/engines/tensorrt/host.py`), which time them with CUDA events after a warm-up,
on these inputs and never on zeros. PyTorch needs the GPU too, for the fp32 answers; it computes before the clock runs.

    python -m perf.bench.plans --repository build/plans --checkpoint random
    python -m perf.bench.plans --repository build/plans --resolutions 672 --classes 4 --layers 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ensemble.server import repository as placement
from ensemble.spec import ENGINES, Variant
from export import checkpoint
from export.engines.tensorrt.host import PlanProcess, TensorRT, open_plan
from perf import results
from perf.bench.candidates import TIMED_PARTS, Outputs, Work
from perf.bench.engines import MOST_PAIRS, Row, Truth, cosine

RESULTS = Path(__file__).parents[1] / "results" / "h200" / "plans.json"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class PlanRow(Row):
    """`peak_mb` is what the plans' contexts and outputs need beside weights and inputs, for the plan's largest
    shapes; `spread_ms` are the fastest and the slowest execution, per frame."""

    spread_ms: tuple[float, float]


@dataclass
class Clock:
    """Times calls of plans and adds them up."""

    plans: Mapping[str, PlanProcess]
    warm_up: int
    repeats: int
    layers: int = 0

    def outputs(self, part: str, feed: Arrays) -> Arrays:
        return self.plans[part](feed)

    def measured(self, *calls: tuple[str, Arrays]) -> tuple[float, tuple[float, float], float]:
        """Milliseconds of all `calls` (part, inputs) together, their fastest and slowest, and the activations of the
        parts that were called."""
        taken = [(part, self.plans[part].time(feed, self.warm_up, self.repeats)) for part, feed in calls]
        memory = sum({part: answer["activation_mb"] for part, answer in taken}.values())
        fastest, slowest = (sum(answer["spread_ms"][i] for _, answer in taken) for i in (0, 1))
        return sum(answer["ms"] for _, answer in taken), (fastest, slowest), memory


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: no GPU, no plans or no TensorRT, and stderr says what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.bench.plans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--resolutions", type=int, nargs="+", help="default: all that the repository has")
    parser.add_argument("--checkpoint", default="random", help="what the plans were made from; default %(default)s")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--present", type=float, nargs="+", default=[1.0, 0.25], help="share of the pairs that get masks"
    )
    parser.add_argument("--repeats", type=int, default=20, help="timed executions; default %(default)s")
    parser.add_argument("--layers", type=int, default=0, help="also list that many of each plan's longest layers")
    parser.add_argument("--tensorrt-python", default="")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, PyTorch finds none; run on the GPU host")
    console = Console(stderr=True, width=130)
    settings = TensorRT(arguments.tensorrt_python)
    try:
        there = placement.read(arguments.repository)
        served = placement.choose(there, arguments.resolutions or [one.variant.resolution for one in there])
        variants = [one.variant for one in served if not one.missing]
        about = settings.about()
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if not variants:
        parser.error(
            f"expected plans in {arguments.repository}, found none that are whole; write them with sam3-export --engine"
            " tensorrt"
        )
    source = checkpoint.load(arguments.checkpoint).model
    rows: list[Row] = []
    with torch.no_grad():
        for variant in variants:
            for row in measure(arguments, variant, source, settings, console):
                rows.append(row)
                console.print(f"{row.part} r{row.resolution} b{row.batch} c{row.classes} present {row.present}: {row.ms_per_frame:.3f} ms/frame,"
                              f" cosine {row.cosine:.6f} {row.cosines}, {row.peak_mb:.0f} MB", highlight=False)  # fmt: skip
                write(rows, arguments, variants, about, argv)
    console.print(table(rows))
    print(json.dumps({"rows": len(rows), "out": str(arguments.output)}))
    return 0


def measure(
    arguments: argparse.Namespace, variant: Variant, source: Any, settings: TensorRT, console: Console
) -> Iterator[Row]:
    """The rows of one resolution: vision encoder, text encoder, then decoder and mask head together."""
    batches = sorted({min(b, variant.max_batch) for b in arguments.batches}, reverse=True)
    truth = Truth(source, variant.resolution, batches[0], "cuda")
    engine = f"tensorrt {settings.about()['tensorrt']}"
    with contextlib.ExitStack() as opened:
        paths = {
            p: arguments.repository / getattr(variant, p).name / "1" / ENGINES["tensorrt"].artifact for p in TIMED_PARTS
        }
        plans = {part: opened.enter_context(open_plan(path, settings)) for part, path in paths.items()}
        clock = Clock(plans, 5, arguments.repeats)

        def row(
            part: str, batch: int, classes: int, present: float, calls: list, found: Arrays, wanted: Outputs
        ) -> PlanRow:
            cosines = {
                n: round(cosine(torch.from_numpy(found[n].copy()).cuda(), wanted[n]), 7)
                for n in found
                if n != "mask_bits"
            }
            ms, (fastest, slowest), activations = clock.measured(*calls)
            memory = activations + sum(array.nbytes for array in found.values()) / 1e6
            spread = (round(fastest / batch, 4), round(slowest / batch, 4))
            return PlanRow(engine, part, variant.resolution, batch, classes, present, variant.precision, round(ms / batch, 4),
                           min(cosines.values()), cosines, round(memory, 1), spread)  # fmt: skip

        for batch in batches:
            work = truth.work(batch, 1, 1.0)
            wanted = truth.features(batch)
            feed = {"pixel_values": host(work.pixel_values)}
            yield row(
                "vision_encoder",
                batch,
                0,
                1.0,
                [("vision_encoder", feed)],
                clock.outputs("vision_encoder", feed),
                wanted,
            )
            if batch == batches[0]:
                names = min(len(work.input_ids), variant.max_pairs)
                feed = {"input_ids": host(work.input_ids[:names])}
                found = clock.outputs("text_encoder", feed)
                texts = {name: tensor[:names] for name, tensor in truth.text(work).items()}
                yield row("text_encoder", batch, names, 1.0, [("text_encoder", feed)], found, texts)
            features = {name: tensor.half() for name, tensor in wanted.items()}
            for classes in arguments.classes:
                for present in arguments.present:
                    chunks = -(-batch * classes // MOST_PAIRS)
                    works = [truth.work(batch, classes, present, chunk) for chunk in range(chunks)]
                    calls, answers = [], []
                    for one in works:
                        more, answer = decode(clock, features, one)
                        calls += more
                        answers.append(answer)
                    yield row(
                        "decoder+masks", batch, classes, present, calls, answers[0], truth.decoded(features, works[0])
                    )
        for part in plans if arguments.layers else ():
            feed = last_feed(part, clock, truth, batches[0])
            console.print(layer_table(part, plans[part].profile(feed)[: arguments.layers]))


def decode(clock: Clock, features: Outputs, work: Work) -> tuple[list[tuple[str, Arrays]], Arrays]:
    """The calls that answer `work` (decoder, and mask head where a pair is present) and their outputs."""
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
    if part == "vision_encoder":
        return {"pixel_values": host(work.pixel_values)}
    if part == "text_encoder":
        return {"input_ids": host(work.input_ids)}
    calls, _ = decode(clock, {name: tensor.half() for name, tensor in truth.features(batch).items()}, work)
    return dict(calls)[part]


def host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


# ---- results
def write(
    rows: Sequence[Row],
    arguments: argparse.Namespace,
    variants: Sequence[Variant],
    about: Mapping[str, str],
    argv: Sequence[str] | None,
) -> None:
    """Rows, and of each plan what its manifest says of the build and of the gate."""
    plans = {}
    for variant in variants:
        for model in variant.sub_models:
            manifest = json.loads((arguments.repository / model.name / "manifest.json").read_text())
            plans[model.name] = {
                name: manifest[name] for name in ("precision", "bytes", "build_seconds", "build", "gate")
            }
    command = " ".join(["python -m perf.bench.plans", *(argv if argv is not None else sys.argv[1:])])
    data = {
        "command": command,
        "date": date.today().isoformat(),
        "built_for": dict(about),
        "versions": {"torch": torch.__version__, "tensorrt": about["tensorrt"]},
        "machine": results.machine(),
        "plans": plans,
        "rows": [asdict(row) for row in rows],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(data, indent=1) + "\n")


def table(rows: Sequence[Row]) -> Table:
    sheet = Table(
        "part", "R", "frames", "classes", "present", "ms/frame", "cosine", "MB", title=f"{rows[0].engine}, one GPU"
    )
    for row in rows:
        cells = (row.part, row.resolution, row.batch, row.classes or "", row.present)
        sheet.add_row(*map(str, cells), f"{row.ms_per_frame:.2f}", f"{row.cosine:.5f}", f"{row.peak_mb:.0f}")
    return sheet


def layer_table(part: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    sheet = Table("layer", "ms a call", title=f"{part}: the longest layers")
    for layer in layers:
        sheet.add_row(str(layer["layer"])[:100], f"{layer['ms']:.3f}")
    return sheet


if __name__ == "__main__":
    sys.exit(main())
