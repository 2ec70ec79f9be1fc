"""What the verbs of `sam3-slim` that change the architecture are told on the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP = {
    "shrink": "a lighter architecture whose weights are chosen from the whole one's; it needs recovery",
    "drop-blocks": "the checkpoint without some blocks of its vision transformer, those that cost least",
    "pool-keys": "the checkpoint with a quarter of the keys in the DETR encoder's attention to the image",
    "recover": "a student that learnt to say again what its teacher says",
}


def add_verbs(verbs: Any) -> None:
    """Adds them to the subparsers `verbs`."""
    for verb, about in HELP.items():
        sub = verbs.add_parser(verb, help=about, description=f"Writes {about}.")
        add = sub.add_argument
        checkpoint = "the student" if verb == "recover" else "folder, file, hub name, or `random`"
        add("checkpoint", metavar="STUDENT" if verb == "recover" else "CHECKPOINT", help=checkpoint)
        if verb == "recover":
            add("teacher", metavar="TEACHER", help="the whole checkpoint")
        add("output", metavar="OUTPUT", type=Path, help="folder to write, which is not there yet")
        add("--tokenizer", help="folder, hub name or Meta's list of merges, for a checkpoint without a tokenizer")
        {"shrink": _shrink, "drop-blocks": _drop, "pool-keys": lambda sub: None, "recover": _recover}[verb](sub)
        add("--frames", type=Path, help="folder of images instead of drawn scenes; the more, the better")
        add("--prompts", nargs="+", default=["person", "car"], help="what to look for in --frames; default: person car")
        add("--frame-count", type=int, default=2, help="frames to compare on at the end; default %(default)s")
        sizes = "pixels a side; the first is compared at; default: the checkpoint's own and 5/6, 2/3 and 5/9 of it"
        add("--resolution", type=int, nargs="+", help=sizes)
        add("--device", choices=("cpu", "cuda"), default="cpu", help="to measure or learn on; default %(default)s")


def _shrink(sub: argparse.ArgumentParser) -> None:
    whole = {
        "width": "channels of the vision transformer",
        "depth": "blocks of the vision transformer; windowed ones go",
        "heads": "heads of the vision transformer; default: as many as fit the width",
        "mlp": "hidden channels of its MLPs; default: in proportion to the width",
        "encoder-layers": "layers of the DETR encoder",
        "decoder-layers": "layers of the DETR decoder",
    }
    for name, about in whole.items():
        sub.add_argument(f"--{name}", type=int, help=about)


def _drop(sub: argparse.ArgumentParser) -> None:
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--count", type=int, help="how many; which ones is measured")
    which.add_argument("--blocks", type=int, nargs="+", help="which ones, numbered from 0")
    sub.add_argument("--batches", type=_positive, default=1, help="batches to measure on; default %(default)s")
    _batches(sub)


def _recover(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_number, default=10.0, help="default %(default)s")
    length.add_argument("--steps", type=int, default=0, help="a number of steps instead of a time")
    add("--learning-rate", type=_number, default=3e-4, help="default %(default)s")
    add("--warm-up", type=_positive, default=100, help="steps of linear warm-up; default %(default)s")
    truth = "weight of the drawn scenes' own answers beside the teacher's; 0.5 suits the small checkpoint"
    add("--truth", type=float, default=0.0, help=f"{truth}; default %(default)s")
    parts = ("vision_encoder", "encoder", "decoder", "geometry_encoder", "mask_head")
    add("--learn", nargs="+", choices=parts, default=list(parts), help="parts that learn; default: all of these")
    _batches(sub)


def _batches(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--batch", type=_positive, default=8, help="scenes in a batch, three prompts each; default %(default)s")
    add("--seed", type=int, default=0, help="another number, other scenes")
    workers = max(0, (os.cpu_count() or 1) - 1)
    add("--workers", type=int, default=workers, help="processes that draw or read; default: all cores but one")


def _above(kind: Callable[[str], Any], text: str) -> Any:
    value = kind(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
    return value


def _positive(text: str) -> int:
    return _above(int, text)


def _number(text: str) -> float:
    return _above(float, text)
