"""What smaller weights save and what they cost: size, load time, memory, speed and average precision of each scheme.

Schemes are made of the small checkpoint, or are folders that sam3-slim wrote of it (--checkpoint NAME=FOLDER). Rows of
the same scheme, resolution and kind of machine in --output are replaced, all others stay.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from ensemble.spec import check_resolution
from export.checkpoint import CheckpointError
from export.engines.engine import EngineError
from export.gate.frames import drawn_frames
from export.gate.verify import GateError
from export.slim import figures
from export.slim.fp8_predictor import Fp8Predictor
from export.tiny import CHECKPOINT
from export.tiny.configuration import RESOLUTIONS
from export.tiny.predictor import TorchPredictor, load_model
from perf import record
from perf.bench.weights import rows as table
from perf.bench.weights.exported import rows_of_exported
from perf.bench.weights.graphs import rows_of_graphs
from perf.bench.weights.probe import least_cosine, measured
from perf.bench.weights.schemes import EXPORTED, GRAPHS, MADE, PREDICTORS, Made, fp8_size_mb, make, size_mb
from perf.console import make_parser, refuse

Row = dict[str, Any]
FAILURES = (CheckpointError, EngineError, GateError, ValueError, RuntimeError, OSError)
"""What a scheme that cannot be made or measured says; the others go on."""
BESIDE = dict.fromkeys(EXPORTED, "onnxruntime fp32")
"""Schemes whose speed is told beside another one's than that of fp32 in PyTorch: the same runtime's."""
SCHEMES = (*MADE, *EXPORTED, GRAPHS)
EMULATED = "E4M3 is rounded in PyTorch here; load time, memory and speed are those of a compiled package"
EXAMPLES = """examples:
  sam3-perf bench weights --scenes 100
  sam3-perf bench weights --scheme fp32 --checkpoint "dropped blocks=build/dropped" --checkpoint fast=build/fast
  sam3-perf bench weights --device cuda --processes 12 --output build/perf/weights.json"""


def parser() -> argparse.ArgumentParser:
    p = make_parser("bench weights", __doc__, EXAMPLES)
    add = p.add_argument
    add("--scheme", nargs="*", choices=SCHEMES, default=list(SCHEMES), help="default: all of them")
    add("--checkpoint", action="append", default=[], metavar="NAME=FOLDER", help="another scheme; several times")
    add("--resolution", type=int, nargs="+", default=list(RESOLUTIONS), help="pixels a side; default %(default)s")
    add("--scenes", type=int, default=500, help="held-out scenes, always the same; 0 for no accuracy; default 500")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    add("--processes", type=int, default=1, help="versions evaluated side by side; default %(default)s")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: every scheme has its figures; 1: some have an error in their place; 2: refused."""
    p = parser()
    options = p.parse_args(argv)
    disable_progress_bar()
    try:
        given = named(options.checkpoint, set(SCHEMES))
        for resolution in options.resolution:
            check_resolution(resolution)
        if options.scenes < 0 or options.processes < 1:
            raise ValueError(f"scenes must be 0 or more and processes 1, got {options.scenes} and {options.processes}")
        before = table.there(options.output)
    except (ValueError, RuntimeError) as error:
        return refuse(p.prog, error)
    head = record.new(p.prog, argv)
    gpu = {"gpu": head["machine"].get("gpu", "unknown")} if options.device == "cuda" else {}
    found: list[Row] = []
    data = head | {"rows": before}
    with tempfile.TemporaryDirectory() as work:
        for row in measure(options, given, Path(work)):
            of = {"measured": head} if "box_ap" in row or "error" in row else {"timed": head}
            found = table.merged(found, [row | gpu | of])
            data = head | {"rows": table.with_speedups(table.merged(before, found), BESIDE)}
            record.write(options.output, data)  # what is there when this is interrupted is kept
    record.publish(options.output, data, f"{options.scenes} held-out scenes", table.shown(data["rows"]))
    wrong = {f"{row['scheme']}: {row['error']}" for row in found if "error" in row}
    for sentence in sorted(wrong):
        print(f"{p.prog}: {sentence}", file=sys.stderr)
    return int(bool(wrong))


def named(pairs: Sequence[str], taken: set[str]) -> dict[str, Path]:
    """NAME=FOLDER as folders by name. Raises ValueError where one is none, or has a scheme's name."""
    found: dict[str, Path] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not name or not folder or name in taken or name in found:
            raise ValueError(
                f"expected NAME=FOLDER with a name of its own, got {pair!r}; taken are {', '.join(sorted(taken))}"
            )
        found[name] = Path(folder)
        size_mb(found[name])
    return found


def measure(options: argparse.Namespace, given: dict[str, Path], work: Path) -> Iterator[Row]:
    """All rows as they come. Average precision comes first, since its processes must be there before this one uses a
    GPU; a row comes again when speed is known too, which nothing is measured beside."""
    made: dict[str, Made] = {name: Made(folder, size_mb(folder)) for name, folder in given.items()}
    for scheme in dict.fromkeys(["fp32", *(scheme for scheme in MADE if scheme in options.scheme)]):
        try:
            made[scheme] = apart(partial(make, scheme, CHECKPOINT, work))
        except FAILURES as error:
            yield from errors(scheme, options.resolution, error)
    folders = {scheme: made[scheme].folder for scheme in (*options.scheme, *given) if scheme in made}
    precise: list[Row] = [{"scheme": scheme, "resolution": r} for r in options.resolution for scheme in folders]
    if options.scenes:
        how = options.scenes, options.device, options.processes, PREDICTORS
        precise = []
        for row in figures.each(folders, options.resolution, *how):
            precise.append(row)
            yield row
    for row in precise:
        try:
            yield about(row["scheme"], made, row["resolution"], options.device) | row
        except FAILURES as error:
            yield from errors(row["scheme"], [row["resolution"]], error)
    for scheme in (scheme for scheme in (*EXPORTED, GRAPHS) if scheme in options.scheme):
        rows_of = rows_of_graphs if scheme == GRAPHS else rows_of_exported
        try:
            yield from rows_of(scheme, options.resolution, options.scenes, options.device, work)
        except FAILURES as error:
            yield from errors(scheme, options.resolution, error)


def apart(call: partial[Made]) -> Made:
    """What `call` returns, called in a process of its own: making a scheme may use the GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call).result()


def about(scheme: str, made: dict[str, Made], resolution: int, device: str) -> Row:
    """Size, load time, memory, speed and cosine of one scheme at one resolution."""
    one = made[scheme]
    row: Row = {"scheme": scheme, "resolution": resolution, "size_mb": round(one.size_mb, 2)}
    if one.before_mb is not None:
        row["made_of_mb"] = round(one.before_mb, 2)
    truth = TorchPredictor(*load_model(made["fp32"].folder, resolution, device), resolution)
    predict = PREDICTORS.get(scheme, TorchPredictor)(*load_model(one.folder, resolution, device), resolution)
    pixels = [frame.pixels for frame in drawn_frames(4, resolution)]
    row["cosine"] = round(least_cosine(predict, truth, pixels), 6)
    if isinstance(predict, Fp8Predictor):
        return row | {"size_mb": round(fp8_size_mb(predict), 2), "note": EMULATED}
    figures_of = measured(scheme, one.folder, resolution, device)
    wall = {"cpu_ms" if device == "cpu" else "ms_per_frame": figures_of.pop("ms")} if "ms" in figures_of else {}
    return row | wall | figures_of


def errors(scheme: str, resolutions: Sequence[int], error: Exception) -> list[Row]:
    """A row for each resolution that says why there are no figures."""
    return [{"scheme": scheme, "resolution": resolution, "error": str(error)} for resolution in resolutions]


if __name__ == "__main__":
    raise SystemExit(main())
