"""What the small checkpoint loses without a third of its blocks and with pooled keys, and what a short training gives
back: average precision before and after, and the vision encoder's speed.

`train` finds the blocks that cost least, and teaches three students at once: "dropped" without those blocks, "pooled"
with pooled keys, "fast" with both. `evaluate` judges what it left in the folder, `speed` times it.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import Sam3Model

from export.checkpoint import Source, at_size, load, random_source
from export.fused.parts import make_fused_part
from export.slim.blocks import search, without_blocks
from export.slim.cost import output_error
from export.slim.figures import rows
from export.slim.lessons import Lessons, loader
from export.slim.recover import PARTS, Recipe, recover
from export.slim.saving import write_model
from export.slim.shrink import dispensable
from export.sub_models import pooled_keys
from export.tiny import CHECKPOINT
from export.tiny.configuration import RESOLUTIONS
from perf import record
from perf.bench.timing import median_ms, require_gpu
from perf.console import make_parser

EXAMPLES = """examples:
  sam3-perf bench recovery train build/recovery --minutes 8
  sam3-perf bench recovery evaluate build/recovery
  sam3-perf bench recovery speed build/recovery --real-size"""
log = logging.getLogger(__name__)

SHARES = (0.4, 0.2, 0.2, 0.2)
REPORT = "train.json"
Options = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 2: there is no GPU."""
    parser = make_parser("bench recovery", __doc__, EXAMPLES)
    add = parser.add_argument
    add("verb", choices=("train", "evaluate", "speed"))
    add("folder", type=Path, help="where students go, and are found again")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="default %(default)s")
    add("--drop", type=int, default=3, help="blocks of eight to leave out; default %(default)s")
    add("--minutes", type=float, default=8.0, help="of training; default %(default)s")
    add("--steps", type=int, default=0, help="a number of steps instead")
    add("--batch", type=int, default=96, help="scenes in a batch; default %(default)s")
    add("--learning-rate", type=float, default=Recipe().learning_rate, help="default %(default)s")
    add("--truth", type=float, default=0.5, help="weight of the scenes' own answers; default %(default)s")
    add("--learn", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="parts that learn; default: all")
    add("--students", nargs="+", choices=("dropped", "pooled", "fast"), default=["dropped", "pooled", "fast"])
    add("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 1), help="processes that draw")
    add("--scenes", type=int, default=500, help="held-out scenes of `evaluate`; default %(default)s")
    add("--processes", type=int, default=14, help="evaluations side by side; default %(default)s")
    add("--resolution", type=int, nargs="+", default=list(RESOLUTIONS), help="pixels a side; default %(default)s")
    add("--real-size", action="store_true", help="also time 32 and 21 blocks at 1008, with random weights")
    record.add_output(parser)
    options = parser.parse_args(argv)
    if options.device == "cuda" and options.verb != "evaluate":  # whose processes want the GPU untouched until then
        require_gpu(parser)
    found = {"train": train, "evaluate": evaluate, "speed": speed}[options.verb](options)
    data = record.new(parser.prog, argv) | found
    if options.verb == "train":
        record.write(options.folder / REPORT, data)
    record.publish(options.output, data, f"small checkpoint, {options.verb}")
    return 0


def train(options: Options) -> dict[str, Any]:
    """Writes every student before its training, as NAME, and after it, as NAME-recovered."""
    source = load(str(CHECKPOINT))
    lessons = Lessons(source.tokenizer, options.batch, options.resolution, SHARES[: len(options.resolution)])
    batches = loader(lessons, options.workers)
    whole, cost = output_error(copy.deepcopy(source.model), batches, 4, options.resolution, options.device)
    choices = search(whole.model, options.drop, cost)
    gone = [choice.block for choice in choices]
    del whole, cost
    smaller = without_blocks(source.model, gone)
    made = {"dropped": smaller, "pooled": pooled(source.model), "fast": pooled(smaller)}
    students = {name: made[name] for name in options.students}
    for name, model in students.items():
        _write(source, model, options.folder / name, {})
    recipe = Recipe(
        options.minutes, options.steps, options.learning_rate, truth=options.truth, parts=tuple(options.learn)
    )
    learnt, told = recover(students, source.model, batches, options.resolution, options.device, recipe, log.info)
    for name, model in learnt.items():
        _write(source, model, options.folder / f"{name}-recovered", {"steps": told["steps"], "recipe": asdict(recipe)})
    losses = [
        {"student": name, "loss_before": told["loss_before"][name]["loss"], "loss_after": after["loss"]}
        for name, after in told["loss_after"].items()
    ]
    searched = {"blocks_left_out": gone, "search": [asdict(choice) for choice in choices]}
    return {"rows": losses, "batch": options.batch, **searched, **told}


def evaluate(options: Options) -> dict[str, Any]:
    """Average precision of the small checkpoint and of all students in the folder."""
    students = {path.name: path for path in sorted(options.folder.iterdir()) if path.is_dir()}
    processes = options.processes if options.device == "cuda" else 1
    whole = {"full": CHECKPOINT}
    return {"rows": rows(whole | students, options.resolution, options.scenes, options.device, processes)}


@torch.inference_mode()
def speed(options: Options) -> dict[str, Any]:
    """Milliseconds a frame of the fused vision encoder in fp16, compiled, with all blocks and with those that stay."""
    gone = json.loads((options.folder / REPORT).read_text())["blocks_left_out"]
    small = load(str(CHECKPOINT)).model
    cases: list[tuple[str, Sam3Model, Sequence[int], int, int]] = [
        ("small", small, gone, 252, 64),
        ("small", small, gone, 1008, 8),
    ]
    if options.real_size:
        real = random_source().model
        trunk = real.config.vision_config.backbone_config
        evenly = dispensable(trunk.num_hidden_layers, trunk.global_attn_indexes, trunk.num_hidden_layers - 11)
        cases.append(("real size", real, evenly, 1008, 8))
    found = []
    for name, model, blocks, resolution, batch in cases:
        times = [_ms(m, resolution, batch) for m in (model, without_blocks(model, blocks))]
        whole, left = (round(ms / batch, 4) for ms in times)
        row = {"model": name, "resolution": resolution, "batch": batch, "blocks_left_out": list(blocks)}
        found.append(row | {"ms": whole, "ms_without": left, "speedup": round(times[0] / times[1], 3)})
    return {"rows": found}


def pooled(model: Sam3Model) -> Sam3Model:
    """A copy of the model with pooled keys."""
    model = copy.deepcopy(model)
    setattr(model.config.detr_encoder_config, pooled_keys.FIELD, pooled_keys.FACTOR)
    return pooled_keys.apply(model)


def _ms(model: Sam3Model, resolution: int, batch: int) -> float:
    queries = model.config.detr_decoder_config.num_queries
    part = make_fused_part("vision_encoder", at_size(model, resolution, queries), "fp16", "gpu").cuda()
    pixels = torch.randint(0, 256, (batch, 3, resolution, resolution), dtype=torch.uint8, device="cuda")
    torch._dynamo.reset()
    run = torch.compile(part)
    run(pixels)
    return median_ms(lambda: run(pixels), "cuda")


def _write(source: Source, model: Sam3Model, target: Path, made: dict[str, Any]) -> None:
    shutil.rmtree(target, ignore_errors=True)  # an earlier run's
    write_model(source, model, target, made)


if __name__ == "__main__":
    raise SystemExit(main())
