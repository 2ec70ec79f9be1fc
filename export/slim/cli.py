"""`sam3-slim`: smaller and faster weights from a checkpoint, compared with the whole ones before they are written.

`strip` keeps what inference needs, `half` stores it in 16 bits; `shrink`, `drop-blocks` and `pool-keys` change the
architecture, and `recover` teaches the result. All write a folder in transformers' layout that sam3-export loads.
Progress and a table go to standard error; the last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble.spec import MB, check_resolution
from export.console import refuse, silence, tell_account
from export.slim.arguments import add_verbs

EXAMPLES = """examples:
  sam3-slim strip runs/last.ckpt build/finetuned --tokenizer facebook/sam3 --ema
  sam3-slim half facebook/sam3 build/sam3-fp16
  sam3-slim half facebook/sam3 build/sam3-fp16 --without-text-encoder
  sam3-slim drop-blocks facebook/sam3 build/dropped --count 11 --device cuda
  sam3-slim recover build/dropped facebook/sam3 build/recovered --minutes 60 --device cuda

Nothing is written before what was read again finds the same objects, and never half of it."""
Work = Callable[[Callable[[str], None]], Mapping[str, Any]]
HELP = {
    "strip": "the weights that inference needs, in the dtype that they have",
    "half": "the same in 16 bits, but for weights that need more",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of `sam3-slim`."""
    parser = argparse.ArgumentParser(
        "sam3-slim", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, about in HELP.items():
        sub = verbs.add_parser(verb, help=about, description=f"Writes {about}.")
        add = sub.add_argument
        add("checkpoint", help="folder, file, hub name, or `random` (real size, random weights)")
        add("output", type=Path, help="folder to write, which is not there yet")
        add("--tokenizer", help="folder, hub name or Meta's list of merges, for a checkpoint without a tokenizer")
        add("--ema", action="store_true", help="take a training's averaged weights")
        add("--without-text-encoder", action="store_true", help="write the text encoder to OUTPUT-text-encoder")
    add_verbs(verbs)
    add = verbs.choices["half"].add_argument
    add("--dtype", choices=("fp16", "bf16"), default="fp16", help="default %(default)s")
    add("--resolution", type=int, help="pixels a side to compare at; default: the checkpoint's own")
    add("--frames", type=Path, help="folder of images to compare on; default: drawn scenes")
    add("--prompts", nargs="+", default=["person", "car"], help="what to look for in --frames; default: person car")
    add("--frame-count", type=int, default=2, help="frames to compare on; default %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 written, 1 the result differs, 2 refused."""
    arguments = build_parser().parse_args(argv)
    start = time.perf_counter()
    console = Console(stderr=True)
    silence()
    try:
        work = _prepare(arguments, console)
    except (ValueError, RuntimeError, OSError) as error:
        return refuse("sam3-slim", error, 2)
    try:
        with console.status("") as status:
            report = work(status.update)
    except (ValueError, RuntimeError, OSError) as error:
        return refuse("sam3-slim", error, 1)
    console.print(table(report))
    told = {"ok": True, "output": str(arguments.output), "seconds": round(time.perf_counter() - start, 1), **report}
    if "half" in report:  # the names are in slim.json
        kept = {reason: len(found["tensors"]) for reason, found in report["half"]["stayed_fp32"].items()}
        told["half"] = {**report["half"], "stayed_fp32": kept}
    print(json.dumps(told))
    return 0


def _prepare(arguments: argparse.Namespace, console: Console) -> Work:
    """The work to do. Raises what `main` turns into a refusal, before the long work where that is possible."""
    if arguments.verb not in HELP:
        from export.slim.architecture import prepare

        with console.status(f"loading {arguments.checkpoint}"):
            return prepare(arguments)
    from export.slim.slimming import slim

    return partial(slim, _job(arguments, console))


def _job(arguments: argparse.Namespace, console: Console) -> Any:
    """What `strip` or `half` is to do."""
    half = arguments.verb == "half"
    if half and arguments.resolution is not None:
        check_resolution(arguments.resolution)
    if half and arguments.frame_count < 1:
        raise ValueError(f"frame-count must be at least 1, got {arguments.frame_count}: weights are always compared")
    from export.checkpoint import load
    from export.gate.frames import drawn_frames, read_frames
    from export.slim.folder import check_target, text_folder
    from export.slim.slimming import Job

    for target in (arguments.output, *([text_folder(arguments.output)] if arguments.without_text_encoder else [])):
        check_target(target, Path(arguments.checkpoint))
    if half and arguments.frames:
        read_frames(arguments.frames, 1, 14, arguments.prompts)
    with console.status(f"loading {arguments.checkpoint}"):
        source = load(arguments.checkpoint, arguments.tokenizer, arguments.ema)
    tell_account(source.name, source.account.sentences() if source.account else [])
    if not half:
        return Job(source, arguments.output, apart=arguments.without_text_encoder)
    resolution = arguments.resolution or source.record.image_size
    if arguments.frames:
        frames = read_frames(arguments.frames, arguments.frame_count, resolution, arguments.prompts)
    else:
        frames = drawn_frames(arguments.frame_count, resolution)
    return Job(
        source, arguments.output, arguments.dtype, arguments.without_text_encoder, frames=frames, resolution=resolution
    )


def table(report: Mapping[str, Any]) -> Table:
    """Sizes, what stayed in fp32, and how near the result is."""
    shown = Table(show_header=False, title=f"{report['of']}, slimmed", title_justify="left")
    for name in ("before", "after", "text_encoder"):
        if f"bytes_{name}" in report:
            shown.add_row(name.replace("_", " "), f"{report[f'bytes_{name}'] / MB:.1f} MB")
    for name, kept in report.get("half", {}).get("stayed_fp32", {}).items():
        shown.add_row(f"fp32: {name}", f"{len(kept['tensors'])} weights: {kept['why']}")
    if "blocks_left_out" in report:
        shown.add_row("blocks left out", ", ".join(map(str, report["blocks_left_out"])))
    if "recovered" in report:
        told = report["recovered"]
        shown.add_row("loss before, after", f"{told['loss_before']['loss']}, {told['loss_after']['loss']}")
        shown.add_row("steps, seconds", f"{told['steps']}, {told['seconds']}")
    if "recovery" in report:
        shown.add_row("recovery", report["recovery"])
    same = report["same"] if "same" in report else report["agreement"]
    if "detections" in same:
        found = same["detections"]
        shown.add_row("lowest cosine", f"{same['cosine']:.7f}")
        shown.add_row("detections", f"{found['matched']} of {found['expected']}, {found['unexpected']} unexpected")
        shown.add_row("least overlap of boxes, masks", f"{found['box_iou']:.4f}, {found['mask_iou']:.4f}")
        shown.add_row("largest difference of scores", f"{found['score_difference']:.4f}")
    else:
        shown.add_row("weights read again", same["weights"])
    return shown


if __name__ == "__main__":
    sys.exit(main())
