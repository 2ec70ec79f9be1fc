"""The verbs of `sam3-slim` that change the architecture: `shrink`, `drop-blocks`, `pool-keys`, and `recover`, which
teaches what they made. The first three lose accuracy, and say how much, until the last gives most of it back."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import CheckpointError, Source, load
from export.gate.frames import drawn_frames, read_frames
from export.slim.blocks import check_blocks, search, without_blocks
from export.slim.compare import compared
from export.slim.cost import output_error
from export.slim.folder import check_target
from export.slim.lessons import Lessons, frames_in, loader
from export.slim.recover import Recipe, check_pair, recover
from export.slim.saving import write_model
from export.slim.shrink import Architecture, planned, shrink
from export.slim.slimming import SlimError
from export.sub_models import pooled_keys

Arguments = argparse.Namespace
Progress = Callable[[str], None]
Work = Callable[[Progress], dict[str, Any]]
"""The long part of a verb; returns its report."""
NEEDED = "needed: sam3-slim recover"


def prepare(arguments: Arguments) -> Work:
    """Loads what a verb works on and checks the rest. Raises ValueError or CheckpointError, before the long work."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a GPU for --device cuda, PyTorch finds none; use --device cpu")
    check_target(arguments.output, Path(arguments.checkpoint))
    return {"shrink": _shrink, "drop-blocks": _drop, "pool-keys": _pool, "recover": _recover}[arguments.verb](arguments)


def _shrink(arguments: Arguments) -> Work:
    names = ("width", "depth", "heads", "mlp", "encoder_layers", "decoder_layers")
    wanted = Architecture(**{name: getattr(arguments, name) for name in names})
    source = _loaded(arguments)
    planned(source.model.config, wanted)

    def work(progress: Progress) -> dict[str, Any]:
        progress("choosing layers and channels")
        record = {"architecture": {k: v for k, v in asdict(wanted).items() if v}, "recovery": NEEDED}
        return _written(arguments, source, shrink(source.model, wanted), record, progress)

    return work


def _drop(arguments: Arguments) -> Work:
    source = _loaded(arguments)
    total = source.model.config.vision_config.backbone_config.num_hidden_layers
    check_blocks(arguments.blocks or range(arguments.count), total)
    lessons = None if arguments.blocks else _lessons(arguments, source)

    def work(progress: Progress) -> dict[str, Any]:
        record: dict[str, Any] = {}
        blocks = arguments.blocks
        if lessons:
            progress("measuring what each block does")
            batches = loader(lessons, arguments.workers)
            changed, cost = output_error(
                copy.deepcopy(source.model), batches, arguments.batches, lessons.resolutions, arguments.device
            )
            choices = search(changed.model, arguments.count, cost, progress)
            blocks, record = [choice.block for choice in choices], {"search": [asdict(choice) for choice in choices]}
        record |= {"blocks_left_out": sorted(blocks), "recovery": NEEDED}
        return _written(arguments, source, without_blocks(source.model, blocks), record, progress)

    return work


def _pool(arguments: Arguments) -> Work:
    source = _loaded(arguments)
    if pooled_keys.pools(source.model.config):
        raise ValueError(f"expected a checkpoint whose keys are not pooled yet, got {source.name}")
    if source.model.config.detr_encoder_config.num_layers < 2:
        raise ValueError("expected a DETR encoder of several layers: the first one's keys are never pooled")

    def work(progress: Progress) -> dict[str, Any]:
        model = copy.deepcopy(source.model)
        setattr(model.config.detr_encoder_config, pooled_keys.FIELD, pooled_keys.FACTOR)
        record = {"pooled_keys": pooled_keys.FACTOR, "recovery": NEEDED}
        return _written(arguments, source, pooled_keys.apply(model), record, progress)

    return work


def _recover(arguments: Arguments) -> Work:
    teacher = load(arguments.teacher, arguments.tokenizer)
    student = _loaded(arguments)
    check_pair(student.model, teacher.model)
    lessons = _lessons(arguments, teacher)
    recipe = Recipe(
        minutes=arguments.minutes,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        warm_up=arguments.warm_up,
        truth=arguments.truth,
        parts=tuple(arguments.learn),
    )

    def work(progress: Progress) -> dict[str, Any]:
        progress("waiting for the first scenes")
        batches = loader(lessons, arguments.workers)
        learnt, told = recover(
            {"student": student.model}, teacher.model, batches, lessons.resolutions, arguments.device, recipe, progress
        )
        before, after = (told[name]["student"] for name in ("loss_before", "loss_after"))
        if not after["loss"] < before["loss"]:
            raise SlimError(
                f"the student is no nearer to its teacher: loss {before['loss']} before, {after['loss']} after"
                f" {told['steps']} steps; nothing was written; give it more --minutes or a lower --learning-rate"
            )
        told |= {"loss_before": before, "loss_after": after, "batch": arguments.batch, "seed": arguments.seed}
        record = {"teacher": teacher.name, "recovered": {**told, "resolutions": lessons.resolutions}}
        model = learnt["student"]
        return _written(arguments, student, model, record, progress, of=teacher)

    return work


def _loaded(arguments: Arguments) -> Source:
    return load(arguments.checkpoint, arguments.tokenizer)


def _lessons(arguments: Arguments, source: Source) -> Lessons:
    """The batches of a verb. Raises ValueError where they cannot be made."""
    length = source.record.context_length
    if not arguments.frames and length != 32:
        raise CheckpointError(f"{source.name}: drawn scenes are for prompts of 32 tokens, not {length}; give --frames")
    return Lessons(
        source.tokenizer,
        arguments.batch,
        *_resolutions(arguments, source),
        seed=arguments.seed,
        frames=frames_in(arguments.frames) if arguments.frames else (),
        words=arguments.prompts,
    )


def _resolutions(arguments: Arguments, source: Source) -> tuple[list[int], list[float]]:
    """The resolutions to learn at and their shares: those given, or the checkpoint's own and 5/6, 2/3 and 5/9 of it
    (1008, 840, 672, 560), the first as often as two others."""
    size, patch = source.record.image_size, source.record.patch_size
    chosen = arguments.resolution or [max(1, round(size * n / 18 / patch)) * patch for n in (18, 15, 12, 10)]
    wrong = [r for r in chosen if r < patch or r % patch]
    if wrong:
        raise ValueError(f"resolution {wrong[0]} is no multiple of the checkpoint's patches of {patch} pixels")
    chosen = list(dict.fromkeys(chosen))
    return chosen, [2.0, *[1.0] * (len(chosen) - 1)]


def _written(
    arguments: Arguments,
    source: Source,
    model: Any,
    record: dict[str, Any],
    progress: Progress,
    of: Source | None = None,
) -> dict[str, Any]:
    """Writes a changed model and measures, read again, how far it is from `of` (by default the source)."""
    whole = of or source
    resolution = (arguments.resolution or [whole.record.image_size])[0]
    if arguments.frames:
        frames = read_frames(arguments.frames, arguments.frame_count, resolution, arguments.prompts)
    else:
        frames = drawn_frames(arguments.frame_count, resolution)

    def measure(again: Any) -> dict[str, Any]:
        progress("reading it again, and comparing")
        gate = compared(whole, again, frames, resolution, "fp32")
        cosine = min(check.cosine for check in gate.outputs)
        agreement = {"resolution": resolution, "frames": len(frames), "cosine": cosine}
        return {"agreement": {**agreement, "detections": asdict(gate.detections)}}

    progress(f"writing {arguments.output}")
    return write_model(source, model, arguments.output, record, measure)
