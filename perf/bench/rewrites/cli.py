"""What each exact rewrite of the sub-models gains by itself: milliseconds, megabytes and differences of both forms.

On a GPU both forms are timed in fp16; on the CPU, to try the command out, in fp32 and without this project's kernels.
That they agree is checked in fp32 as well, with at most two frames of two classes. `gain` is of the step that is named,
not of the sub-model that it belongs to: how fast whole sub-models are, `sam3-perf bench engines` says, and what each
kernel is worth, `sam3-perf bench kernels`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Model

from ensemble.gate.limits import LIMITS
from ensemble.spec import check_resolution
from export import checkpoint
from export.fused.parts import check_kernels
from perf import record
from perf.bench.engines.cases import sized
from perf.bench.rewrites.case import Case, Rewrite
from perf.bench.rewrites.forms import PADDED, REWRITES
from perf.bench.timing import cosine, median_ms, require_gpu, with_peak
from perf.console import make_parser

Row = dict[str, Any]
EXAMPLES = """examples:
  sam3-perf bench rewrites
  sam3-perf bench rewrites --device cpu --checkpoint export/tiny/checkpoint --resolution 252 --padded 210"""
log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """0: the forms agree; 1: two of them do not; 2: there is no GPU, or an argument cannot be used."""
    parser = make_parser("bench rewrites", __doc__, EXAMPLES)
    parser.add_argument(
        "--checkpoint", default="random", help="folder, hub name, or `random` (real size); default %(default)s"
    )
    parser.add_argument("--resolution", type=int, default=1008, help="default %(default)s")
    parser.add_argument(
        "--padded",
        type=int,
        nargs="+",
        default=[840, 560],
        help="resolutions at which windows do not fill the map, for rewrite 8; default 840 560",
    )
    parser.add_argument("--frames", type=int, default=8, help="default %(default)s")
    parser.add_argument("--classes", type=int, default=4, help="of each frame; default %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default %(default)s")
    record.add_output(parser)
    options = parser.parse_args(argv)
    if options.device == "cuda":
        require_gpu(parser, ", or try the command out with --device cpu")
    if min(options.frames, options.classes) < 1:
        parser.error(f"expected at least one frame and one class, got {options.frames} and {options.classes}")
    try:
        source = load(options)
    except ValueError as error:
        parser.error(str(error))
    rows = []
    for resolution, rewrites in ((options.resolution, REWRITES), *((r, (PADDED,)) for r in options.padded)):
        model = sized(source, resolution)
        for rewrite in rewrites:
            rows.append(measure(rewrite, model, options.device, options.frames, options.classes))
            log.info("%s", json.dumps(rows[-1]))
    precision = "fp16" if options.device == "cuda" else "fp32"
    data = record.new(parser.prog, argv, cuda=torch.version.cuda) | {"device": options.device, "rows": rows}
    size = f"{options.frames} frames, {options.frames * options.classes} pairs, {precision}"
    record.publish(options.output, data, f"{size}: milliseconds of a call as written and rewritten")
    bad = failures(rows)
    for sentence in bad:
        print(f"{parser.prog}: {sentence}", file=sys.stderr)
    return 1 if bad else 0


def load(options: argparse.Namespace) -> Sam3Model:
    """The checkpoint. Raises ValueError where it cannot be measured so."""
    for resolution in (options.resolution, *options.padded):
        check_resolution(resolution)
    model = checkpoint.load(options.checkpoint).model
    if options.device == "cuda":
        check_kernels(model, "fp16")
    config = model.config.vision_config.backbone_config
    for resolution in options.padded:
        if resolution // config.patch_size % config.window_size == 0:
            raise ValueError(
                f"--padded: expected resolutions whose windows are padded, at {resolution} windows of"
                f" {config.window_size} patches fill the map; take one that is not a multiple of"
                f" {config.patch_size * config.window_size}"
            )
    return model


@torch.no_grad()
def measure(rewrite: Rewrite, model: Sam3Model, device: str, frames: int, classes: int) -> Row:
    """One rewrite at the model's resolution."""
    row: Row = {"rewrite": rewrite.name, "compared": rewrite.compared}
    row["resolution"] = model.config.vision_config.image_size
    written, rewritten = rewrite.forms(Case(model, device, "fp32", min(frames, 2), min(classes, 2)))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        error = compare(relative, rewritten(), written()).max()
    written, rewritten = rewrite.forms(Case(model, device, "fp16" if device == "cuda" else "fp32", frames, classes))
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # for both, the fastest that cuDNN has
        similar = compare(cosine, rewritten(), written()).min()
        before, after = median_ms(written, device), median_ms(rewritten, device)
        row |= {"ms_before": round(before, 4), "ms_after": round(after, 4), "gain": round(before / after, 3)}
        row["fp32_error"] = float(f"{error:.2e}")
        if device == "cuda":
            row["fp16_cosine"] = round(float(similar), 7)
            row |= {"mb_before": with_peak(written, device)[1], "mb_after": with_peak(rewritten, device)[1]}
    return row


def compare(measure: Callable[[Tensor, Tensor], float], found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """`measure` of each tensor; as a tensor, whose extremes do not lose a NaN."""
    return torch.tensor([measure(a, b) for a, b in zip(found, wanted, strict=True)], dtype=torch.float64)


def relative(found: Tensor, wanted: Tensor) -> float:
    """max|found - wanted| / max|wanted|; NaN where either holds one."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def failures(rows: Sequence[Row]) -> list[str]:
    """A sentence for every rewrite whose two forms differ."""
    found = []
    for row in rows:
        where = f"{row['rewrite']} at {row['resolution']}"
        error, similar = LIMITS["fp32"].relative, LIMITS["fp16"].cosine
        if not row["fp32_error"] <= error:
            found.append(f"{where}: expected an error of at most {error} in fp32, got {row['fp32_error']}")
        if not row.get("fp16_cosine", 1.0) >= similar:
            found.append(f"{where}: expected a cosine of at least {similar} in fp16, got {row['fp16_cosine']}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
