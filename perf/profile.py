"""`sam3-perf profile`: one resolution of a repository goes in, a table per stage and per kind of kernel and a trace for Perfetto come out.

The sub-models run in this process, in the server's own flow (`ensemble/pipeline.py`) on drawn frames, with ONNX Runtime's profiler on: no server, no
transport, one clock. Beside the milliseconds stand the arithmetic that `perf/model.py` counts and what this processor reaches on a plain product of
matrices, so that it shows which stage is far from what the machine can do.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from rich.table import Table

from ensemble.memory import SAM3, Architecture
from ensemble.pipeline import Pipeline
from ensemble.preprocess import decode, to_pixel_values
from ensemble.prompts import PromptTokenizer
from ensemble.request import FrameRequest
from ensemble.spec import Model, Variant
from perf import inputs, results
from perf.model import decoder_flops, mask_head_flops, text_flops, vision_flops
from perf.screen import wide_console

PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention", "Einsum")
"""Kinds whose name holds one of these multiply matrices; the others move and change numbers, and memory is their limit."""
EXAMPLES = """examples:
  sam3-perf profile --repository build/repository --resolution 252 --classes 4 --frames 8
  then open build/perf/profile/trace.json in https://ui.perfetto.dev"""


class ProfileError(ValueError):
    """What is asked for cannot be profiled; the message says what could be."""


@dataclass(slots=True)
class Sessions:
    """`call` for a `Pipeline`: opens an ONNX Runtime session per sub-model, with its profiler on, and counts calls."""

    repository: Path
    folder: Path
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _open: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: Model, tensors: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if model.part not in self._open:
            self._open[model.part] = self._session(model)
        self.calls[model.part] += 1
        found = self._open[model.part].run(list(outputs), {name: np.asarray(value) for name, value in tensors.items()})
        return dict(zip(outputs, found, strict=True))

    def _session(self, model: Model) -> Any:
        import onnxruntime as ort

        path = self.repository / model.name / "1" / "model.onnx"
        if not path.is_file():
            raise ProfileError(
                f"expected {path}: this command profiles ONNX Runtime; write the files with sam3-export --engine onnxruntime"
            )
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(self.folder / model.part)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def events(self, skip: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
        """part -> the profiler's events, without those of the first `skip[part]` calls. Ends the sessions."""
        found = {}
        for part, session in self._open.items():
            path = Path(session.end_profiling())
            events = json.loads(path.read_text())
            path.unlink()
            runs = sorted(e["ts"] for e in events if e.get("name") == "model_run")
            first = runs[skip.get(part, 0)] if skip.get(part, 0) < len(runs) else float("inf")
            found[part] = [e for e in events if e.get("ts", 0) >= first]
        return found


def read_variant(repository: Path, resolution: int | None) -> Variant:
    """The variant of a front model in the repository; of the only one where no resolution is given. Raises ProfileError."""
    configs = {
        int(p.parent.name.removeprefix("sam3_r")): p
        for p in repository.glob("sam3_r*/config.pbtxt")
        if p.parent.name[6:].isdigit()
    }
    if not configs:
        raise ProfileError(
            f"expected a model repository in {repository}, found no sam3_r*/config.pbtxt; write one with sam3-export"
        )
    if resolution is None and len(configs) == 1:
        resolution = next(iter(configs))
    if resolution not in configs:
        have = ", ".join(map(str, sorted(configs)))
        raise ProfileError(
            f"expected one of the resolutions in {repository} ({have}), got {resolution}; say which with --resolution"
        )
    match = re.search(r'key: "variant", value: { string_value: ("(?:[^"\\]|\\.)*")', configs[resolution].read_text())
    if match is None:
        raise ProfileError(f"{configs[resolution]} names no variant; write the repository again with sam3-export")
    return Variant.from_dict(json.loads(json.loads(match[1])))


def run(variant: Variant, sessions: Sessions, frames: int, classes: int, rounds: int) -> tuple[dict[str, float], dict[str, int]]:
    """Milliseconds of each stage per round (median), after one round that warms up; and how many calls that one made."""
    length = variant.checkpoint.context_length
    tokenizer = PromptTokenizer(sessions.repository / variant.text_encoder.name / "1" / "tokenizer.json", length)
    shown = inputs.pictures(frames)
    times: dict[str, list[float]] = defaultdict(list)
    warm: dict[str, int] = {}
    for turn in track(range(rounds + 1), description="rounds", console=wide_console(), transient=True):
        pipeline = Pipeline(variant, tokenizer, sessions)  # a new one: the text encoder is called in every round
        start = time.perf_counter()
        jobs = []
        for picture in shown:
            image = decode(picture.jpeg)
            request = FrameRequest(tuple(inputs.classes_of(picture, classes)), image=picture.jpeg, mask_format="bits")
            jobs.append(pipeline.prepare(request, to_pixel_values(image, variant.resolution), (image.height, image.width)))
        decoded = time.perf_counter()
        pipeline.run(jobs)
        if turn == 0:
            warm = dict(sessions.calls)
            continue
        times["decode"].append((decoded - start) * 1e3)
        for stage, milliseconds in jobs[0].stage_ms.items():
            times[stage].append(milliseconds)
    return {stage: float(np.median(values)) for stage, values in times.items()}, warm


def kernels(events: Mapping[str, Sequence[Mapping[str, Any]]], rounds: int) -> list[dict[str, Any]]:
    """One record per part and kind of kernel, the longest first: milliseconds and launches per round, of the median call."""
    rows = []
    for part, found in events.items():
        starts = sorted(e["ts"] for e in found if e.get("name") == "model_run")
        spent: dict[str, list[list[float]]] = {}
        for event in found:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                calls = spent.setdefault(event["args"]["op_name"], [[] for _ in starts])
                calls[bisect_right(starts, event["ts"]) - 1].append(event["dur"] / 1e3)
        for kind, calls in spent.items():
            a_round = len(calls) / rounds
            milliseconds = float(np.median([sum(call) for call in calls])) * a_round
            launches = round(float(np.median([len(call) for call in calls])) * a_round)
            limit = "arithmetic" if any(name in kind for name in PRODUCTS) else "memory"
            rows.append({"part": part, "kernel": kind, "ms": round(milliseconds, 3), "launches": launches, "limit": limit})
    return sorted(rows, key=lambda row: -row["ms"])


def operations(variant: Variant, a: Architecture, frames: int, classes: int) -> dict[str, float]:
    """GFLOP of a round by stage; masks counted as if every pair had some."""
    pairs, r, q = frames * classes, variant.resolution, variant.queries
    flops = {"vision": frames * vision_flops(r, a, pad_linears=False), "decoder": pairs * decoder_flops(r, a, q)}
    flops |= {"masks": pairs * mask_head_flops(r, a, q), "text": classes * text_flops(a)}
    return {stage: value / 1e9 for stage, value in flops.items()}


def ceilings() -> dict[str, float]:
    """What this machine reaches: GFLOP/s of a product of fp32 matrices of 1536 a side, GB/s of a copy of 256 MB (read and written), best of three."""
    a = np.random.default_rng(0).random((1536, 1536), np.float32)
    block = np.zeros(64 << 20, np.float32)
    target = np.empty_like(block)
    products, copies = [], []
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        products.append(time.perf_counter() - start)
        start = time.perf_counter()
        np.copyto(target, block)
        copies.append(time.perf_counter() - start)
    return {"gflop_s": round(2 * 1536**3 / min(products) / 1e9, 1), "copy_gb_s": round(2 * block.nbytes / min(copies) / 1e9, 1)}


def write_trace(events: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """All parts in one file in Chrome's trace format: a process a part."""
    merged: list[dict[str, Any]] = []
    for number, (part, found) in enumerate(events.items()):
        merged.append({"ph": "M", "name": "process_name", "pid": number, "args": {"name": part}})
        merged += [dict(event) | {"pid": number} for event in found]
    path.write_text(json.dumps({"traceEvents": merged}))


def main(argv: Sequence[str] | None = None) -> int:
    """0: profiled; 2: not possible, and stderr says why."""
    p = argparse.ArgumentParser(
        prog="sam3-perf profile", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--repository", type=Path, default=Path("build/repository"), help="default %(default)s")
    p.add_argument("--resolution", type=int, help="default: the repository's only one")
    p.add_argument("--frames", type=int, default=1, help="of one batch; default %(default)s")
    p.add_argument("--classes", type=int, default=4, help="default %(default)s")
    p.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    p.add_argument(
        "--checkpoint", type=Path, help="folder with config.json, for the count of operations; default: facebook/sam3's sizes"
    )
    p.add_argument("--output", type=Path, default=Path("build/perf/profile"), help="folder; default %(default)s")
    options = p.parse_args(argv)
    try:
        variant = read_variant(options.repository, options.resolution)
        if not 1 <= options.frames <= variant.max_batch:
            raise ProfileError(f"frames must be 1 to {variant.max_batch} (the variant's max_batch), got {options.frames}")
        if options.classes < 1 or options.rounds < 1:
            raise ProfileError(f"classes and rounds must be at least 1, got {options.classes} and {options.rounds}")
        options.output.mkdir(parents=True, exist_ok=True)
        sessions = Sessions(options.repository, options.output)
        stages, warm = run(variant, sessions, options.frames, options.classes, options.rounds)
    except ValueError as error:
        print(f"sam3-perf profile: {error}", file=sys.stderr)
        print(json.dumps({"error": str(error)}))
        return 2
    events = sessions.events(warm)
    write_trace(events, options.output / "trace.json")
    architecture = Architecture.from_checkpoint(options.checkpoint) if options.checkpoint else SAM3
    counted = operations(variant, architecture, options.frames, options.classes)
    rows, limits = kernels(events, options.rounds), ceilings()
    wide_console().print(stage_table(stages, counted, limits), kernel_table(rows[:15]))
    result = {"model": variant.front_name, "frames": options.frames, "classes": options.classes, "machine": results.machine()}
    result |= {"stage_ms": {s: round(ms, 3) for s, ms in stages.items()}, "ceilings": limits, "kernels": rows[:15]}
    (options.output / "profile.json").write_text(json.dumps(result | {"kernels": rows}, indent=1) + "\n")
    print(json.dumps(result | {"trace": str(options.output / "trace.json")}))
    return 0


def stage_table(stages: Mapping[str, float], counted: Mapping[str, float], limits: Mapping[str, float]) -> Table:
    sheet = Table("stage", "ms a round", "GFLOP", "GFLOP/s", "of a plain product", title="stages")
    for stage, ms in stages.items():
        rate = counted.get(stage, 0) / ms * 1e3 if ms else 0.0
        cells = (
            (f"{counted[stage]:.1f}", f"{rate:.0f}", f"{rate / limits['gflop_s']:.0%}") if stage in counted else ("-", "-", "-")
        )
        sheet.add_row(stage, f"{ms:.2f}", *cells)
    return sheet


def kernel_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    sheet = Table("part", "kernel", "ms a round", "launches", "limit", title="the longest kernels")
    for row in rows:
        sheet.add_row(row["part"], row["kernel"], f"{row['ms']:.2f}", str(row["launches"]), row["limit"])
    return sheet


if __name__ == "__main__":
    sys.exit(main())
