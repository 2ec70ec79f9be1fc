"""What an engine and its precision cost in accuracy: COCO's figures of exported artifacts beside those of PyTorch in
fp32.

The artifacts run in the server's own pipeline, without Triton (`perf/bench/in_process.py`). The reference is
transformers' own `Sam3Model` on the same scenes in the same run, its masks cut at zero before they are enlarged, as
packed masks are: a difference is one of arithmetic alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers.utils.logging import disable_progress_bar

from ensemble.server.repository import Served, read
from ensemble.server.requirements import ServerError
from export.checkpoint import CheckpointError, load
from export.checkpoint.source import PART_WEIGHTS
from export.engines.engine import EngineError
from export.engines.tensorrt.network import PlanError
from export.tiny import CHECKPOINT
from export.tiny.evaluate import Case, held_out, judge
from export.tiny.predictor import TorchPredictor, load_model
from perf import record
from perf.bench.in_process import Answers, opened
from perf.console import make_parser, refuse, wide_console

MOST_POINTS = 0.5
"""Hundredths of average precision that an engine may be away from fp32."""
GATED = ("AP", "AP50")
EXAMPLES = """example:
  sam3-export --checkpoint export/tiny/checkpoint --resolution 252 140 --precision fp16 --repository build/accuracy/fp16
  sam3-perf bench accuracy --repository build/accuracy/fp16"""

Figures = dict[str, Any]
"""What `export.tiny.evaluate.judge` returns."""


def parser() -> argparse.ArgumentParser:
    p = make_parser("bench accuracy", __doc__, EXAMPLES)
    p.add_argument(
        "--repository",
        type=Path,
        action="append",
        required=True,
        help="written by sam3-export; may be given several times",
    )
    p.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="that they were made from; default: the small one"
    )
    p.add_argument("--scenes", type=int, default=500, help="held-out scenes, always the same; default %(default)s")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: every average precision is within `MOST_POINTS` of fp32's; 1: one is not; 2: a repository cannot be used, and
    stderr says why."""
    p = parser()
    options = p.parse_args(argv)
    console = wide_console()
    disable_progress_bar()  # of the weights, which take a moment
    try:
        found = [(folder, served) for folder in options.repository for served in variants(folder)]
        check_origin([served for _, served in found], options.checkpoint)
        cases = list(track(held_out(options.scenes), "drawing scenes", options.scenes, console=console))
        shown = lambda what: track(cases, what, console=console)  # noqa: E731
        sizes = sorted({served.variant.resolution for _, served in found}, reverse=True)
        truth = {}
        for r in sizes:
            answers = reference(shown(f"torch fp32 {r}"), options.checkpoint, r)
            truth[r] = judge(zip(cases, answers, strict=True))
        rows = [row for r in sizes for row in rows_of("torch", "fp32", r, truth[r], truth[r])]
        details = [{"engine": "torch", "precision": "fp32", "resolution": r, **truth[r]} for r in sizes]
        for folder, served in found:
            variant = served.variant
            with opened(served) as answer:
                label = f"{served.engine} {variant.precision} {variant.resolution}"
                figures = judge(zip(cases, answer(shown(label)), strict=True))
            rows += rows_of(served.engine, variant.precision, variant.resolution, figures, truth[variant.resolution])
            details.append({"repository": str(folder), **about(served), **figures})
    except (ServerError, EngineError, PlanError, CheckpointError) as error:
        return refuse(p.prog, error)
    data = record.new(p.prog, argv) | {"scenes": options.scenes, "most_points": MOST_POINTS}
    title = f"{options.scenes} held-out scenes; points: hundredths away from torch in fp32"
    record.publish(options.output, data | {"details": details, "rows": rows}, title)
    return int(any(beyond(row) for row in rows))


# ---- repositories
def variants(folder: Path) -> list[Served]:
    """Every front model of the repository at `folder`. Raises ServerError where there is none, or where an artifact is
    missing."""
    found = read(folder)
    missing = [artifact.path for served in found for artifact in served.missing]
    if missing or not found:
        what = f"{missing[0]}, which is not there" if missing else "a front model, found none"
        raise ServerError(
            f"{folder}: expected {what}; write it with sam3-export --checkpoint {CHECKPOINT} --repository {folder}"
        )
    return found


def check_origin(found: Iterable[Served], checkpoint: Path) -> None:
    """Raises ServerError unless every artifact's manifest says that it was made from `checkpoint`."""
    source = load(str(checkpoint))
    expected = {source.part_sha256(part) for part in PART_WEIGHTS}
    for artifact in (artifact for served in found for artifact in served.artifacts):
        got = artifact.manifest.get("checkpoint", {})
        if got.get("sha256") not in expected:
            raise ServerError(
                f"{artifact.folder}: expected an artifact of {checkpoint}, its manifest names"
                f" {got.get('name', 'no checkpoint')} with other weights or another configuration; export again, or"
                " name its checkpoint with --checkpoint"
            )


def about(served: Served) -> dict[str, Any]:
    """Engine, precision, resolution, and what the artifacts were built for and how near the export's gate found
    them."""
    outputs = {name: check for a in served.artifacts for name, check in a.manifest["gate"]["outputs"].items()}
    return {
        "engine": served.engine,
        "precision": served.variant.precision,
        "resolution": served.variant.resolution,
        "built_for": served.artifacts[0].manifest["built_for"],
        "least_cosine": min(check["cosine"] for check in outputs.values()),
    }


# ---- figures
def reference(cases: Iterable[Case], checkpoint: Path, resolution: int) -> Answers:
    """`Sam3Model`'s in fp32, on the GPU where there is one; masks are bool, decided at the mask head's size."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # ten bits of mantissa are not fp32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predict = TorchPredictor(*load_model(checkpoint, resolution, device), resolution)
    for case in cases:
        answers = predict(case.rendering.frame, [question.prompt for question in case.questions])
        yield [replace(answer, masks=answer.masks > 0) for answer in answers]


def rows_of(name: str, precision: str, resolution: int, figures: Figures, truth: Figures) -> list[dict[str, Any]]:
    """A row for boxes and one for masks of the questions in words, and of those with example boxes."""
    rows = []
    for prompts in ("text", "exemplar"):
        for kind in ("box", "mask"):
            row: dict[str, Any] = {"engine": name, "precision": precision, "resolution": resolution}
            row |= {"prompts": prompts, "of": kind}
            row |= {figure: figures[prompts][kind][figure] for figure in GATED}
            row |= {"presence": round(figures[prompts]["presence_accuracy"], 4)}
            away = {figure: 100 * (figures[prompts][kind][figure] - truth[prompts][kind][figure]) for figure in GATED}
            rows.append(row | {f"{figure}_points": round(value, 2) for figure, value in away.items()})
    return rows


def beyond(row: Mapping[str, Any]) -> bool:
    """Whether an average precision is further from fp32's than allowed; NaN is."""
    return any(not abs(row[f"{figure}_points"]) <= MOST_POINTS for figure in GATED)


if __name__ == "__main__":
    raise SystemExit(main())
