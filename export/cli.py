"""`sam3-export`: a checkpoint and a few choices in, a Triton model repository out, with progress, a table of what was
written and one line of JSON.

Refusals come before the long work and say what would have worked.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ensemble.spec import ENGINES, RESOLUTIONS, Variant, check_resolution
from export.engines.tensorrt.host import TensorRT

if TYPE_CHECKING:
    from export.repository import Written

EXAMPLES = """examples:
  sam3-export --checkpoint facebook/sam3 --resolution 1008 672 --engine tensorrt --repository model_repository
  sam3-export --checkpoint export/tiny/checkpoint --resolution 252 --queries 50 --repository build/repository
  sam3-export --checkpoint random --resolution 560 --repository /tmp/load-test     (real size, random weights: a load test)

Every artifact is measured against the checkpoint itself before it enters the repository; artifacts that are up to date are kept.
The last line of standard output is one JSON object."""

STEPS = 8
"""Reports of `export_variant` when everything is built."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `sam3-export`."""
    parser = argparse.ArgumentParser(
        "sam3-export",
        description=(
            "From a SAM3 checkpoint to a Triton model repository: five verified sub-models and the front model."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Variant()
    add = parser.add_argument
    add(
        "--checkpoint",
        default="facebook/sam3",
        help="folder, hub name, or `random` (real size, random weights); default %(default)s",
    )
    add(
        "--resolution",
        type=int,
        nargs="+",
        default=[RESOLUTIONS[0]],
        help="pixels a side, multiples of 14, exported in turn; default 1008",
    )
    add("--queries", type=int, help="object queries to keep, the first of the checkpoint's; default: all")
    add("--engine", default="onnxruntime", help=f"one of {', '.join(ENGINES)}; default %(default)s")
    add("--precision", help="fp32 or fp16; default: fp32 for onnxruntime, fp16 for the GPU engines")
    add("--repository", type=Path, default=Path("model_repository"), help="folder to write; default %(default)s")
    add(
        "--max-batch",
        type=int,
        default=usual.max_batch,
        help="most frames in one vision-encoder call; default %(default)s",
    )
    add(
        "--max-pairs",
        type=int,
        default=usual.max_pairs,
        help="most (image, class) pairs in one decoder call; default %(default)s",
    )
    add("--max-boxes", type=int, default=usual.max_boxes, help="most exemplar boxes of one class; default %(default)s")
    add("--max-picks", type=int, default=usual.max_picks, help="most masks of one mask-head row; default %(default)s")
    add(
        "--front-instances",
        type=int,
        default=usual.front_instances,
        help="front models side by side; changing it rewrites configurations only; default %(default)s",
    )
    add("--frames", type=Path, help="folder of images to verify with; default: drawn scenes")
    add("--prompts", nargs="+", default=["person", "car"], help="what to look for in --frames; default %(default)s")
    add("--frame-count", type=int, default=2, help="frames to verify with; default %(default)s")
    add("--force", action="store_true", help="build everything again")
    add(
        "--locate",
        action="store_true",
        help="if the gate fails, build the encoders once more and name the first layer that is off",
    )
    plan = TensorRT()
    add = parser.add_argument_group("engine tensorrt").add_argument
    add("--tensorrt-python", default="", help="Python that has TensorRT; default: $SAM3_TENSORRT_PYTHON, or this one")
    add(
        "--builder-level",
        type=int,
        default=plan.level,
        choices=range(6),
        help="0 to 5: longer builds, faster plans; default %(default)s",
    )
    add(
        "--workspace-mb",
        type=int,
        default=plan.workspace_mb,
        help="scratch memory a layer may use, 0 for no limit; default %(default)s",
    )
    add(
        "--timing-cache",
        default=str(Path("~/.cache/sam3-export").expanduser()),
        help="folder that keeps kernel timings between builds, empty for none; default %(default)s",
    )
    add(
        "--staging",
        type=Path,
        help="folder in which artifacts wait for the gate; default: the one that --repository is in",
    )
    return parser


def check_staging(folder: Path) -> None:
    """Raises ValueError where nothing can be written there, which otherwise shows after the first artifact is built."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"expected a folder that can be written, got {folder}: artifacts wait there for the gate; name another with"
            " --staging"
        )


def _tensorrt(arguments: argparse.Namespace) -> TensorRT:
    return TensorRT(arguments.tensorrt_python, arguments.workspace_mb, arguments.builder_level, arguments.timing_cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 written, 1 the export or its gate failed, 2 refused before any work."""
    arguments = build_parser().parse_args(argv)
    start = time.perf_counter()
    try:
        for resolution in arguments.resolution:  # before the slow imports
            check_resolution(resolution)
        _hush()
        jobs = _prepare(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        return _refuse(error, 2)
    try:
        written = _export(arguments, **jobs)
    except (ValueError, RuntimeError, OSError) as error:
        return _refuse(error, 1)
    Console(stderr=True).print(_table(written))
    result = {
        "ok": True,
        "repository": str(arguments.repository),
        "engine": arguments.engine,
        "checkpoint": jobs["source"].name,
        "front": [variant.front_name for variant in jobs["variants"]],
        "seconds": round(time.perf_counter() - start, 1),
        "written": [asdict(entry) for entry in written],
    }
    print(json.dumps(result))
    return 0


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads the checkpoint and checks every choice against it. Raises what `main` turns into a refusal."""
    from export.checkpoint import load
    from export.engines.registry import EngineError, engine
    from export.gate.frames import read_frames

    tool = engine(arguments.engine, _tensorrt(arguments))
    precision = arguments.precision or tool.precisions[0]
    if precision not in tool.precisions:
        raise EngineError(
            f"engine {arguments.engine} makes {' or '.join(tool.precisions)}, got precision {precision!r}"
        )
    if arguments.frame_count < 1:
        raise ValueError(f"frame-count must be at least 1, got {arguments.frame_count}: the gate always runs")
    if arguments.repository.exists() and not arguments.repository.is_dir():
        raise ValueError(
            f"expected a folder to write the repository to, got the file {arguments.repository}; name a folder"
        )
    check_staging(arguments.staging or arguments.repository.resolve().parent)
    if arguments.frames:
        read_frames(arguments.frames, 1, arguments.resolution[0], arguments.prompts)
    with Console(stderr=True).status(f"loading {arguments.checkpoint}"):
        source = load(arguments.checkpoint)
    variants = [
        Variant(
            resolution=resolution,
            queries=source.record.num_queries if arguments.queries is None else arguments.queries,
            precision=precision,
            max_batch=arguments.max_batch,
            max_pairs=arguments.max_pairs,
            max_boxes=arguments.max_boxes,
            max_picks=arguments.max_picks,
            front_instances=arguments.front_instances,
            checkpoint=source.record,
        )
        for resolution in dict.fromkeys(arguments.resolution)
    ]
    return {"source": source, "variants": variants}


def _export(arguments: argparse.Namespace, source: Any, variants: Sequence[Variant]) -> list[Written]:
    """Every variant in turn; what several share (the text encoder) is listed once."""
    from export.gate.frames import drawn_frames, read_frames
    from export.variant import export_variant

    written: dict[str, Written] = {}
    columns = (
        SpinnerColumn(),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=STEPS * len(variants))

        def show(line: str, step: int = 0) -> None:
            progress.update(task, advance=step, description=line)
            if not console.is_terminal:  # a log has no line that changes
                console.print(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, markup=False, soft_wrap=True)

        for done, variant in enumerate(variants, 1):
            if arguments.frames:
                frames = read_frames(arguments.frames, arguments.frame_count, variant.resolution, arguments.prompts)
            else:
                frames = drawn_frames(arguments.frame_count, variant.resolution)
            entries = export_variant(
                source,
                variant,
                arguments.engine,
                arguments.repository,
                frames,
                report=lambda step: show(step, 1),
                force=arguments.force,
                tensorrt=_tensorrt(arguments),
                detail=show,
                locate=arguments.locate,
                staging=arguments.staging,
            )
            progress.update(task, completed=STEPS * done, description="done")
            for entry in entries:
                written[entry.model] = entry if entry.state == "built" else written.get(entry.model, entry)
    return list(written.values())


def _table(written: Iterable[Written]) -> Table:
    table = Table(title="Written and verified", title_justify="left")
    for heading in (
        "model",
        "MB",
        "state",
        "build s",
        "cosine",
        "error",
    ):  # least cosine and largest relative error of its outputs
        table.add_column(
            heading, no_wrap=heading == "model", justify="left" if heading in ("model", "state") else "right"
        )
    for entry in written:
        size, seconds = f"{entry.megabytes:.1f}", f"{entry.seconds:.1f}"
        table.add_row(entry.model, size, entry.state, seconds, f"{entry.cosine:.7f}", f"{entry.relative_error:.1e}")
    return table


def _refuse(error: Exception, status: int) -> int:
    Console(stderr=True).print(f"[red]sam3-export:[/red] {error}", highlight=False)
    print(json.dumps({"ok": False, "error": str(error)}))
    return status


def _hush() -> None:
    """Libraries' notes about their own loading would bury the sentence that matters."""
    warnings.filterwarnings("ignore")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
