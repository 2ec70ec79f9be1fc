"""Milliseconds a frame of SAM3's parts on one GPU, engine beside engine: resolutions, batches and class counts in, a
table, a JSON file and one JSON line out.

Everything runs in one process on the same checkpoint (by default random weights of real size) and the same tensors
(never zeros, on which a GPU is faster). Beside each speed stands the least cosine of the outputs with the same
computation in fp32, so that nothing is fast and wrong.

    python -m perf.bench.engines --repository build/packages --resolutions 1008
    python -m perf.bench.engines --resolutions 1008 --classes 4 --engines wrappers fused --batches 8
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Sam3Model

from ensemble import spec
from ensemble.spec import Variant
from export import checkpoint
from perf.bench.candidates import (
    ENGINES,
    TIMED_PARTS,
    Candidate,
    Outputs,
    Work,
    aoti,
    fused,
    reference,
    transformers_model,
    wrappers,
)

RESULTS = Path(__file__).parents[1] / "results" / "h200" / "engines.json"
PICKS = 20
MOST_PAIRS = Variant.max_pairs
"""Pairs of one decoder call, as the server makes them."""


@dataclass(frozen=True)
class Row:
    """One measurement; `present` is the share of pairs that get masks, `peak_mb` what the call needs beside weights and
    inputs."""

    engine: str
    part: str
    resolution: int
    batch: int
    classes: int
    present: float
    precision: str
    ms_per_frame: float
    cosine: float
    cosines: dict[str, float]
    peak_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m perf.bench.engines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", default="random", help="folder, hub name, or `random` (real size); default %(default)s"
    )
    parser.add_argument("--resolutions", type=int, nargs="+", default=[1008, 672])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--present", type=float, nargs="+", default=[1.0, 0.25], help="share of the (image, class) pairs that get masks"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--repository", type=Path, help="written from the same checkpoint by sam3-export --engine aoti, for engine aoti"
    )
    parser.add_argument("--seconds", type=float, default=3600, help="begin no new measurement after that long")
    parser.add_argument(
        "--profile", type=Path, help="also write the longest kernels of each engine's parts to this file"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, PyTorch finds none; run on the GPU host")
    arguments.device = "cuda"
    if "aoti" in arguments.engines and arguments.repository is None:
        parser.error(
            "expected --repository for engine aoti; write one with sam3-export --engine aoti, or name other --engines"
        )
    console = Console(stderr=True, width=130)
    start = time.monotonic()
    rows: list[Row] = []
    with torch.no_grad():
        source = checkpoint.load(arguments.checkpoint).model
        for row in measure(source, arguments, start + arguments.seconds, console):
            rows.append(row)
            console.print(f"[{time.monotonic() - start:.0f}s] {row.engine} {row.part} r{row.resolution} b{row.batch} c{row.classes} present {row.present}:"
                          f" {row.ms_per_frame:.3f} ms/frame, cosine {row.cosine:.6f} {row.cosines}, {row.peak_mb:.0f} MB", highlight=False)  # fmt: skip
            write(rows, arguments.output, argv)
    console.print(table(rows))
    print(json.dumps({"rows": len(rows), "out": str(arguments.output)}))
    return 0


# ---- measurements
def measure(source: Sam3Model, arguments: argparse.Namespace, deadline: float, console: Console) -> Iterator[Row]:
    """Rows of every engine, resolution by resolution; an engine that fails is reported and left out."""
    for resolution in arguments.resolutions:
        truth = Truth(source, resolution, max(arguments.batches), arguments.device)
        for engine in arguments.engines:
            try:
                candidate = make(engine, source, resolution, arguments)
                yield from measure_engine(engine, candidate, truth, resolution, arguments, deadline)
            except Exception as error:
                console.print(
                    f"{engine} at {resolution} failed: {type(error).__name__}: {str(error)[:1500]}",
                    markup=False,
                    highlight=False,
                )
            candidate = None  # type: ignore[assignment]  # its weights leave the GPU before the next one's come
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            torch.compiler.reset()


def make(engine: str, source: Sam3Model, resolution: int, arguments: argparse.Namespace) -> Candidate:
    """The candidate of that engine; raises FileNotFoundError where a package is missing."""
    if engine == "aoti":
        variant = Variant(resolution, queries=source.config.detr_decoder_config.num_queries)
        names = {part: getattr(variant, part).name for part in TIMED_PARTS}
        return aoti(
            {part: arguments.repository / name / "1" / spec.ENGINES[engine].artifact for part, name in names.items()}
        )
    model = sized(source, resolution)
    if engine.startswith("transformers"):
        return transformers_model(copy.deepcopy(model), engine.endswith("compiled"), arguments.device)
    return (wrappers if engine == "wrappers" else fused)(model, arguments.device)


def sized(source: Sam3Model, resolution: int) -> Sam3Model:
    """`source` at that resolution, with all its queries."""
    return checkpoint.at_size(source, resolution, source.config.detr_decoder_config.num_queries)


def measure_engine(
    engine: str, candidate: Candidate, truth: Truth, resolution: int, arguments: argparse.Namespace, deadline: float
) -> Iterator[Row]:
    for batch in sorted(arguments.batches, reverse=True):
        work = truth.work(batch, 1, 1.0)
        if time.monotonic() < deadline:
            row = Row(engine, "vision_encoder", resolution, batch, 0, 1.0, "fp16", 0, 0, {}, 0)
            yield timed(row, lambda: candidate.encode(work), truth.features(batch), arguments.profile)  # noqa: B023
        if candidate.text and batch == max(arguments.batches) and time.monotonic() < deadline:
            row = Row(engine, "text_encoder", resolution, batch, 4, 1.0, "fp16", 0, 0, {}, 0)
            yield timed(row, lambda: candidate.text(work), truth.text(work), arguments.profile)  # type: ignore[misc]  # noqa: B023
        features = (
            candidate.encode(work)
            if engine.startswith("transformers")
            else {k: v.half() for k, v in truth.features(batch).items()}
        )
        for classes in arguments.classes:
            for present in arguments.present:
                if time.monotonic() > deadline:
                    return
                works = [
                    truth.work(batch, classes, present, chunk) for chunk in range(-(-batch * classes // MOST_PAIRS))
                ]
                row = Row(engine, "decoder+masks", resolution, batch, classes, present, "fp16", 0, 0, {}, 0)
                wanted = truth.decoded(features, works[0])
                yield timed(
                    row,
                    lambda: [candidate.decode(features, w) for w in works][0],  # noqa: B023, RUF015
                    wanted,
                    arguments.profile,
                )


def timed(row: Row, call: Callable[[], Outputs], wanted: Outputs, profile: Path | None) -> Row:
    """`row` with the median time of `call` by CUDA events after warming up, its memory, and its outputs' cosines with
    `wanted`."""
    device = next(iter(wanted.values())).device.type
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = call()
    peak = 0.0
    if device == "cuda":
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    cosines = {
        name: round(cosine(found[name], wanted[name]), 7) for name in wanted if name in found and name != "mask_bits"
    }
    del found
    milliseconds = median_ms(call, device)
    if profile:
        write_profile(profile, row, call)
    return replace(
        row,
        ms_per_frame=round(milliseconds / row.batch, 4),
        cosine=min(cosines.values()),
        cosines=cosines,
        peak_mb=round(peak, 1),
    )


def median_ms(call: Callable[[], object], device: str) -> float:
    """Median milliseconds of a call, by CUDA events after a warm-up; on the CPU a single call by the clock."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(call, warmup=100, rep=250, return_mode="median")
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors of one shape, flattened; NaN where either holds one."""
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / (a.norm() * b.norm()))


def write_profile(path: Path, row: Row, call: Callable[[], object]) -> None:
    """Appends the kernels that take longest in one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_device_time_total)
    lines = [
        f"## {row.engine} {row.part} r{row.resolution} b{row.batch} c{row.classes} present {row.present}: ms of one"
        " call, launches, kernel"
    ]
    lines += [f"{e.self_device_time_total / 1e3:9.3f} {e.count:5d} {e.key[:110]}" for e in events[:25]]
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


class Truth:
    """The inputs of every case at one resolution, and the outputs in fp32, made when first asked for."""

    def __init__(self, source: Sam3Model, resolution: int, batch: int, device: str) -> None:
        self.queries: int = source.config.detr_decoder_config.num_queries
        self.device = device
        self.model = reference(sized(source, resolution), device)
        generator = torch.Generator(device).manual_seed(resolution)
        coarse = torch.rand(batch, 3, 16, 16, device=device, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(resolution, resolution), mode="bilinear")
        noise = torch.rand(batch, 3, resolution, resolution, device=device, generator=generator)
        self.pixel_values = (178 * smooth + 77 * noise).to(torch.uint8)
        self.input_ids = torch.randint(3, 200, (4, 32), device=device, dtype=torch.int32, generator=generator)
        self.prompts = self.model.text(self.work(1, 1, 1.0, prompts=False))["text_features"].half()  # type: ignore[misc]
        self._features: dict[int, Outputs] = {}

    def work(self, batch: int, classes: int, present: float, chunk: int = 0, prompts: bool = True) -> Work:
        """Pairs `chunk * 32` and following of `batch` frames times `classes`; every 1/present-th of them gets masks."""
        pairs = torch.arange(batch * classes, device=self.device, dtype=torch.int32)[
            chunk * MOST_PAIRS : (chunk + 1) * MOST_PAIRS
        ]
        step = round(1 / present) if present else len(pairs) + 1
        rows = torch.arange(0 if present else len(pairs), len(pairs), step, device=self.device, dtype=torch.int32)
        picks = (torch.arange(PICKS, device=self.device, dtype=torch.int32) * 7 + rows[:, None]) % self.queries
        features = self.prompts[(pairs % 4).long()] if prompts else torch.empty(0, device=self.device)
        mask = (torch.arange(32, device=self.device)[None] < 3 + (pairs % 4)[:, None]).int()
        return Work(self.pixel_values[:batch], self.input_ids, pairs // classes, features, mask, rows, picks)

    def features(self, batch: int) -> Outputs:
        if batch not in self._features:
            self._features[batch] = self.model.encode(self.work(batch, 1, 1.0))
        return self._features[batch]

    def text(self, work: Work) -> Outputs:
        assert self.model.text
        return self.model.text(work)

    def decoded(self, features: Outputs, work: Work) -> Outputs:
        return self.model.decode({name: features[name] for name in ("fpn_0", "fpn_1", "fpn_2")}, work)


# ---- results
def write(rows: Sequence[Row], path: Path, argv: Sequence[str] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m perf.bench.engines", *(argv if argv is not None else sys.argv[1:])])
    versions = {name: version(name) for name in ("torch", "triton", "transformers")} | {"cuda": torch.version.cuda}
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30),
    }
    data = {
        "command": command,
        "date": date.today().isoformat(),
        "versions": versions,
        "machine": machine,
        "rows": [vars(row) for row in rows],
    }
    path.write_text(json.dumps(data, indent=1) + "\n")


def table(rows: Sequence[Row]) -> Table:
    result = Table(
        "part", "R", "frames", "classes", "present", "engine", "ms/frame", "cosine", "MB", title="fp16, one GPU"
    )
    for row in sorted(rows, key=lambda r: (r.part, -r.resolution, r.batch, r.classes, -r.present)):
        cells = (row.part, row.resolution, row.batch, row.classes or "", row.present, row.engine)
        result.add_row(*map(str, cells), f"{row.ms_per_frame:.2f}", f"{row.cosine:.5f}", f"{row.peak_mb:.0f}")
    return result


if __name__ == "__main__":
    sys.exit(main())
