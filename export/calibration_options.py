"""The options of `sam3-export` that say what fp8, and int8 for GPUs, are calibrated on."""

from __future__ import annotations

import argparse
from pathlib import Path

METHODS = ("percentile", "minmax", "entropy")
"""How the largest magnitude of a tensor in int8 is chosen: one that all values but the rarest stay below, the largest
that was seen, or the one whose rounded values have the least relative entropy. The first was the nearest to fp32."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what fp8, and int8 for GPUs, are calibrated on."""
    add = parser.add_argument_group("precision fp8, and int8 of engines tensorrt and tensorrt_rtx").add_argument
    add(
        "--calibration-frames",
        type=Path,
        help="folder of images of your cameras; default: drawn scenes, in int8 for the small checkpoint alone",
    )
    add("--calibration-prompts", nargs="*", metavar="NAME", help="int8: what to look for in these images")
    add(
        "--calibration",
        choices=METHODS,
        help=f"int8: how far scales reach; default {METHODS[0]}, which leaves out the rarest values",
    )


def check(arguments: argparse.Namespace, precision: str) -> None:
    """Raises ValueError where the options do not suit the precision or each other, and for images that cannot be
    read."""
    from export.slim.calibration import calibration_frames
    from export.slim.int8_inputs import check_words

    calibrated = {"int8_fp16": ("frames", "prompts", ""), "fp8": ("frames",)}.get(precision, ())
    for name in ("frames", "prompts", ""):
        option = "calibration" + (name and f"_{name}")
        if getattr(arguments, option) is not None and name not in calibrated:
            what = "--precision int8 for a GPU" + (" or fp8" if name == "frames" else "")
            raise ValueError(
                f"expected {what} beside --{option.replace('_', '-')}, got {precision} of engine {arguments.engine}:"
                " leave one out"
            )
    if precision == "int8_fp16" and (arguments.calibration_frames, arguments.calibration_prompts) != (None, None):
        check_words(arguments.calibration_prompts or ())
        if arguments.calibration_frames is None:
            raise ValueError("expected --calibration-frames beside --calibration-prompts; name a folder of images")
    if arguments.calibration_frames:
        calibration_frames(arguments.calibration_frames, arguments.resolution[0])
