"""`sam3-export`: writes a Triton model repository from a SAM3 checkpoint.

It shows a progress bar and a table of what was written, and ends with one line of JSON. Refusals come before the long
work and say what would have worked.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ensemble.gate.cli import main as verify
from ensemble.spec import ENGINES, RESOLUTIONS, Variant, check_resolution, find_engine
from export import calibration_options as calibration
from export.console import refuse, silence, tell_account
from export.engines.tensorrt import settings as tensorrt

if TYPE_CHECKING:
    from export.repository import Written

EXAMPLES = """examples:
  sam3-export --checkpoint facebook/sam3 --resolution 1008 672 --engine tensorrt --repository model_repository
  sam3-export --checkpoint export/tiny/checkpoint --resolution 252 --queries 50 --repository build/repository
  sam3-export --checkpoint facebook/sam3 --resolution 672 --video --repository model_repository
  sam3-export --checkpoint random --resolution 560 --repository /tmp/load-test   (real size, random weights)
  sam3-export verify build/repository      (measures what is there on this machine, without the checkpoint)

Every artifact is measured against the checkpoint itself before it enters the repository; artifacts that are up to date
are kept. The last line of standard output is one JSON object."""

ANYWHERE = next(engine.name for engine in ENGINES.values() if not engine.on_gpu)
COUNTS = {
    "max_batch": "most frames in one vision-encoder call",
    "max_pairs": "most (image, class) pairs in one decoder call",
    "max_boxes": "most exemplar boxes of one class",
    "max_picks": "most masks of one mask-head row",
    "front_instances": "front models side by side; changing it rewrites configurations only",
}
"""Fields of a variant that are options of their own, and their help."""
STEPS, TRACKER_STEPS = 9, 6
"""Steps of `export_variant` and of `export_tracker` when everything is built."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `sam3-export`."""
    parser = argparse.ArgumentParser(
        "sam3-export",
        description="Write a Triton model repository from a SAM3 checkpoint: verified sub-models and a front model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Variant()
    precisions = ", ".join(f"{engine.precision} for {engine.name}" for engine in ENGINES.values())
    add = parser.add_argument
    add(
        "--checkpoint",
        default="facebook/sam3",
        help="folder, file, hub name, or `random` (real size, random weights); default %(default)s",
    )
    add("--tokenizer", help="folder, hub name or Meta's list of merges, for a checkpoint without a tokenizer")
    add("--ema", action="store_true", help="take a training's averaged weights")
    add(
        "--resolution",
        type=int,
        nargs="+",
        default=[RESOLUTIONS[0]],
        help="pixels a side, multiples of 14, exported one after another; default 1008",
    )
    add("--queries", type=int, help="object queries to keep, the first of the checkpoint's; default: all")
    add("--engine", default=ANYWHERE, help=f"one of {', '.join(ENGINES)}; default %(default)s")
    add(
        "--video",
        action="store_true",
        help="export the tracker of a video model too, which follows objects from frame to frame",
    )
    add(
        "--precision",
        help=f"fp32, fp16, int8 (not aoti), or fp8 (engines aoti and tensorrt_rtx); default: {precisions}",
    )
    add("--repository", type=Path, default=Path("model_repository"), help="folder to write; default %(default)s")
    for name, what in COUNTS.items():
        option = f"--{name.replace('_', '-')}"
        add(option, type=int, default=getattr(usual, name), help=f"{what}; default %(default)s")
    add("--frames", type=Path, help="folder of images to verify with; default: drawn scenes")
    add("--prompts", nargs="+", default=["person", "car"], help="what to look for in --frames; default: person car")
    calibration.add_options(parser)
    add("--frame-count", type=int, default=2, help="frames to verify with; default %(default)s")
    add("--force", action="store_true", help="build everything again")
    add(
        "--locate",
        action="store_true",
        help="if the gate fails, build the encoders once more and name the first layer that is off",
    )
    add(
        "--staging",
        type=Path,
        help="folder in which artifacts wait for the gate; default: the one that --repository is in",
    )
    tensorrt.add_options(parser)
    return parser


def check_staging(folder: Path) -> None:
    """Raises ValueError where nothing can be written there, which otherwise shows after the first artifact is built."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"expected a folder that can be written, got {folder}: artifacts wait there for the gate; name another with"
            " --staging"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 written, 1 the export or its gate failed, 2 refused before any work."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["verify"]:
        return verify(words[1:])
    arguments = build_parser().parse_args(words)
    start = time.perf_counter()
    try:
        for resolution in arguments.resolution:  # before the slow imports
            check_resolution(resolution)
        silence()
        source, variants = _prepare(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        return refuse("sam3-export", error, 2)
    try:
        written = _export(arguments, source, variants)
    except (ValueError, RuntimeError, OSError) as error:
        return refuse("sam3-export", error, 1)
    Console(stderr=True).print(_table(written))
    result = {
        "ok": True,
        "repository": str(arguments.repository),
        "engine": arguments.engine,
        "checkpoint": source.name,
        "weights": source.account and source.account.as_dict(),
        "front": [variant.front_name for variant in variants],
        "seconds": round(time.perf_counter() - start, 1),
        "written": [asdict(entry) for entry in written],
    }
    print(json.dumps(result))
    return 0


def _prepare(arguments: argparse.Namespace) -> tuple[Any, list[Variant]]:
    """The loaded checkpoint and the variants to make of it. Raises what `main` turns into a refusal."""
    from export.checkpoint import load
    from export.engines.registry import ready
    from export.gate.frames import read_frames
    from export.slim.int8_inputs import check_frames

    engine = find_engine(arguments.engine)
    precision = engine.exact(arguments.precision or engine.precision)
    ready(arguments.engine, tensorrt.from_arguments(arguments), arguments.precision or precision)
    if arguments.frame_count < 1:
        raise ValueError(f"frame-count must be at least 1, got {arguments.frame_count}: the gate always runs")
    if arguments.repository.exists() and not arguments.repository.is_dir():
        raise ValueError(
            f"expected a folder to write the repository to, got the file {arguments.repository}; name a folder"
        )
    check_staging(arguments.staging or arguments.repository.resolve().parent)
    if arguments.frames:
        read_frames(arguments.frames, 1, arguments.resolution[0], arguments.prompts)
    calibration.check(arguments, precision)
    with Console(stderr=True).status(f"loading {arguments.checkpoint}"):
        source = load(arguments.checkpoint, arguments.tokenizer, arguments.ema, arguments.video)
    if precision == "int8_fp16":
        check_frames(source, arguments.calibration_frames is not None)
    tell_account(source.name, source.account.sentences() if source.account else [])
    queries = source.record.num_queries if arguments.queries is None else arguments.queries
    counts = {name: getattr(arguments, name) for name in COUNTS}
    tracker = source.tracker.record if source.tracker else None
    resolutions = dict.fromkeys(arguments.resolution)
    return source, [
        Variant(r, queries, precision, checkpoint=source.record, tracker=tracker, **counts) for r in resolutions
    ]


def _export(arguments: argparse.Namespace, source: Any, variants: Sequence[Variant]) -> list[Written]:
    """Exports the variants one after another; what several share (the text encoder) is listed once."""
    from export.gate.frames import drawn_frames, read_frames
    from export.slim.calibration import calibration_frames
    from export.tracker import export_tracker
    from export.variant import Job, export_variant

    steps = STEPS + (TRACKER_STEPS if source.tracker else 0)
    seen = arguments.calibration_frames
    written: dict[str, Written] = {}
    with Bar(steps * len(variants)) as bar:
        for done, variant in enumerate(variants, 1):
            if arguments.frames:
                frames = read_frames(arguments.frames, arguments.frame_count, variant.resolution, arguments.prompts)
            else:
                frames = drawn_frames(arguments.frame_count, variant.resolution)
            job = Job(
                source,
                variant,
                arguments.engine,
                arguments.repository,
                frames,
                force=arguments.force,
                locate=arguments.locate,
                staging=arguments.staging,
                calibration=calibration_frames(seen, variant.resolution) if seen else (),
                calibration_prompts=arguments.calibration_prompts or (),
                calibration_method=arguments.calibration or calibration.METHODS[0],
                tensorrt=tensorrt.from_arguments(arguments),
            )
            tracker = export_tracker(job, bar.step) if source.tracker else []
            entries = [*export_variant(job, bar.step), *tracker]
            bar.reach(steps * done)
            for entry in entries:
                written[entry.model] = entry if entry.state == "built" else written.get(entry.model, entry)
    return list(written.values())


class Bar(logging.Handler):
    """The progress bar on standard error while its block runs. Log lines of the export are shown beside it; where
    standard error is not a terminal, every step and log line becomes a line with the time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.console = Console(stderr=True)
        text = TextColumn("{task.description}", markup=False)
        columns = SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), text
        self.progress = Progress(*columns, console=self.console)
        self.task = self.progress.add_task("starting", total=steps)

    def __enter__(self) -> Bar:
        self.logger = logging.getLogger("export")
        self.earlier = self.logger.level
        self.logger.setLevel(logging.INFO)
        self.logger.addHandler(self)
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        self.logger.removeHandler(self)
        self.logger.setLevel(self.earlier)

    def step(self, line: str) -> None:
        """One step further, which `line` describes."""
        self._show(line, 1)

    def reach(self, steps: int) -> None:
        """So many steps are done, whether they were needed or not."""
        self.progress.update(self.task, completed=steps, description="done")

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage(), 0)

    def _show(self, line: str, steps: int) -> None:
        self.progress.update(self.task, advance=steps, description=line)
        if not self.console.is_terminal:
            self.console.print(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, markup=False, soft_wrap=True)


def _table(written: Iterable[Written]) -> Table:
    """Of each artifact, the lowest cosine and the largest relative error of its outputs."""
    entries = list(written)
    verified = all(entry.cosine is not None for entry in entries)
    title = "Written and verified" if verified else "Written; what the gate has not run on a GPU is not verified"
    table = Table(title=title, title_justify="left")
    for heading in ("model", "MB", "state", "build s", "cosine", "error"):
        table.add_column(
            heading, no_wrap=heading == "model", justify="left" if heading in ("model", "state") else "right"
        )
    for entry in entries:
        size, seconds = f"{entry.megabytes:.1f}", f"{entry.seconds:.1f}"
        gate = ("not run", "") if entry.cosine is None else (f"{entry.cosine:.7f}", f"{entry.relative_error:.1e}")
        table.add_row(entry.model, size, entry.state, seconds, *gate)
    return table


if __name__ == "__main__":
    sys.exit(main())
