"""What each exact rewrite of the sub-models gains by itself: a checkpoint goes in; milliseconds, megabytes and
differences of both forms come out.

On a GPU both forms are timed in fp16; on the CPU, to try the command out, in fp32 and without this project's kernels.
That they agree is checked in fp32 as well, with at most two frames of two classes. `gain` is of the step that is named,
not of the sub-model that it belongs to: how fast whole sub-models are is `perf.bench.engines`' question, and what each
kernel is worth is `perf.bench.kernels`'.

    python -m perf.bench.rewrites.rewrites --output perf/results/h200/rewrites.json python -m
    perf.bench.rewrites.rewrites --device cpu --checkpoint export/tiny/checkpoint --resolution 252 --padded 210
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Model

from ensemble.spec import check_resolution
from export import checkpoint
from export.fused.parts import check_kernels
from export.gate.limits import LIMITS
from perf.bench.engines import cosine, median_ms, sized
from perf.bench.rewrites.case import Case, Form, Rewrite
from perf.bench.rewrites.forms import PADDED, REWRITES
from perf.record import publish

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """0: the forms agree; 1: two of them do not; 2: there is no GPU, or an argument cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.bench.rewrites.rewrites",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", default="random", help="folder, hub name, or `random` (real size); default %(default)s"
    )
    parser.add_argument("--resolution", type=int, default=1008)
    parser.add_argument(
        "--padded", type=int, nargs="+", default=[840, 560], help="where windows do not fill the map, for rewrite 8"
    )
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--classes", type=int, default=4, help="of each frame")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "expected a CUDA GPU, PyTorch finds none; run on the GPU host, or try the command out with --device cpu"
        )
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
            print(rows[-1], file=sys.stderr, flush=True)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    versions = {name: version(name) for name in ("torch", "triton", "transformers")} | {"cuda": torch.version.cuda}
    title = (
        f"{options.frames} frames, {options.frames * options.classes} pairs, {'fp16' if gpu else 'fp32'}: milliseconds"
        " of a call as written and rewritten"
    )
    publish("perf.bench.rewrites.rewrites", argv, title, rows, options.output, gpu=gpu, versions=versions)
    bad = failures(rows)
    for sentence in bad:
        print(f"perf.bench.rewrites.rewrites: {sentence}", file=sys.stderr)
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
    row: Row = {
        "rewrite": rewrite.name,
        "compared": rewrite.compared,
        "resolution": model.config.vision_config.image_size,
    }
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
            row |= {
                "fp16_cosine": round(float(similar), 7),
                "mb_before": peak_mb(written),
                "mb_after": peak_mb(rewritten),
            }
    return row


def compare(measure: Callable[[Tensor, Tensor], float], found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """`measure` of each tensor; as a tensor, whose extremes do not lose a NaN."""
    return torch.tensor([measure(a, b) for a, b in zip(found, wanted, strict=True)], dtype=torch.float64)


def relative(found: Tensor, wanted: Tensor) -> float:
    """max|found - wanted| / max|wanted|; NaN where either holds one."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def peak_mb(call: Form) -> float:
    """Megabytes of GPU memory that a call needs beside weights and inputs, its result included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


def failures(rows: Sequence[Row]) -> list[str]:
    """A sentence for every rewrite whose two forms differ."""
    found = []
    for row in rows:
        where = f"{row['rewrite']} at {row['resolution']}"
        if not row["fp32_error"] <= LIMITS["fp32"].relative:
            found.append(
                f"{where}: expected an error of at most {LIMITS['fp32'].relative} in fp32, got {row['fp32_error']}"
            )
        if not row.get("fp16_cosine", 1.0) >= LIMITS["fp16"].cosine:
            found.append(
                f"{where}: expected a cosine of at least {LIMITS['fp16'].cosine} in fp16, got {row['fp16_cosine']}"
            )
    return found


if __name__ == "__main__":
    sys.exit(main())
