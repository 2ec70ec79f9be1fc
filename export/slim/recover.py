"""A short self-distillation: students that lost layers, channels or keys learn to say again what their teacher says.

Loader processes make batches, the teacher answers each of them once, and every student learns from that answer: with
several students (of one teacher) drawing and teaching is paid once. A slow average of the weights is what is kept.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Model

from export.slim.distil import Outputs, distillation, outputs
from export.tiny.configuration import set_resolution
from export.tiny.dataset import Batch
from export.tiny.losses import losses, match, matching_costs, targets_of
from export.tiny.network import Positions, Predictions

HELD_BACK = 2
"""Batches at the beginning that nobody learns from: on them the losses before and after are measured."""
PARTS = {
    "vision_encoder": ("vision_encoder.",),
    "encoder": ("detr_encoder.",),
    "decoder": ("detr_decoder.", "dot_product_scoring."),
    "geometry_encoder": ("geometry_encoder.",),
    "mask_head": ("mask_decoder.",),
}
"""What can learn, by the beginnings of names; the text encoder never does, so that words mean what they meant."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters. The time ends the training, or `steps` if it is not 0. `truth` weighs the drawn scenes' own
    answers beside the teacher's; 0 needs none. `parts` are those of PARTS that learn; the others stay as they are."""

    minutes: float = 10.0
    steps: int = 0
    learning_rate: float = 3e-4
    warm_up: int = 100  # steps
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.998  # decay of the averaged weights
    truth: float = 0.0
    parts: tuple[str, ...] = tuple(PARTS)


class Sized:
    """A model that takes batches of several resolutions: the rotary positions of each, made once."""

    def __init__(self, model: Sam3Model, resolutions: Sequence[int], device: torch.device) -> None:
        self.model, self.device = model.to(device), device
        self.positions = Positions(model)
        self.tables = {resolution: self._tables(resolution) for resolution in dict.fromkeys(resolutions)}

    def _tables(self, resolution: int) -> list[Tensor]:
        set_resolution(self.model, resolution)
        return [layer.position_ids for layer in self.model.vision_encoder.backbone.layers]

    def __call__(self, batch: Batch) -> Outputs:
        for layer, table in zip(
            self.model.vision_encoder.backbone.layers, self.tables[batch.pixels.shape[1]], strict=True
        ):
            layer.position_ids = table
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return outputs(self.model, batch, self.positions)


class Student:
    """A model that learns, its average, its optimiser."""

    def __init__(self, model: Sam3Model, resolutions: Sequence[int], device: torch.device, recipe: Recipe) -> None:
        self.recipe, self.steps = recipe, 0
        self.taught = Sized(copy.deepcopy(model).train(), resolutions, device)
        self.average = Sized(copy.deepcopy(model).eval().requires_grad_(False), resolutions, device)
        named = dict(self.taught.model.named_parameters())
        learning = tuple(beginning for part in recipe.parts for beginning in PARTS[part])
        for name, parameter in named.items():
            parameter.requires_grad_(name.startswith(learning))
        self.parameters = [p for p in named.values() if p.requires_grad]
        fused = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=recipe.weight_decay, fused=fused)

    @torch.enable_grad()
    def step(self, batch: Batch, teacher: Outputs, progress: float) -> dict[str, Tensor]:
        """Learns from one batch; `progress` in 0..1 sets the learning rate. Returns the loss's parts."""
        rate = self.recipe.learning_rate * min(1.0, (self.steps + 1) / self.recipe.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        parts = loss(self.taught(batch), teacher, batch, self.recipe.truth)
        self.optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimiser.step()
        self.steps += 1
        decay = min(self.recipe.average, self.steps / (self.steps + 10))  # a short average at first
        averaged, learnt = list(self.average.model.parameters()), list(self.taught.model.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(averaged, [p.detach() for p in learnt], 1 - decay)
        return {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def judged(self, lessons: Sequence[tuple[Batch, Outputs]]) -> dict[str, float]:
        """The averaged weights' loss, by part, on lessons that nobody learnt from."""
        found = [loss(self.average(batch), teacher, batch, 0.0) for batch, teacher in lessons]
        return {name: round(float(torch.stack([f[name] for f in found]).mean()), 5) for name in found[0]}


def loss(student: Outputs, teacher: Outputs, batch: Batch, truth: float) -> dict[str, Tensor]:
    """The distillation's parts, and with `truth` that of the drawn answers in their sum."""
    parts = distillation(student, teacher)
    if truth:
        parts["truth"] = _of_truth(student.predictions, batch)
        parts["loss"] = parts["loss"] + truth * parts["truth"]
    return parts


def _of_truth(predictions: Predictions, batch: Batch) -> Tensor:
    targets = targets_of(batch)
    rows = match(matching_costs(predictions, targets).cpu().numpy(), targets.counts.cpu().numpy())
    rows = torch.from_numpy(rows).to(predictions.logits.device, non_blocking=True)
    return losses(predictions, targets, batch.index_map, rows)["loss"]


def check_pair(student: Sam3Model, teacher: Sam3Model) -> None:
    """Raises ValueError where a student cannot learn from a teacher."""
    mine, theirs = student.config, teacher.config
    queries, wanted = (config.detr_decoder_config.num_queries for config in (mine, theirs))
    if queries != wanted:
        raise ValueError(f"expected the teacher's {wanted} queries, got {queries}: they are compared one by one")
    if mine.text_config.vocab_size != theirs.text_config.vocab_size:
        raise ValueError("expected a student with its teacher's tokenizer; its text encoder has another vocabulary")
    patch = [c.vision_config.backbone_config.patch_size for c in (mine, theirs)]
    if patch[0] != patch[1]:
        raise ValueError(f"expected patches as large as the teacher's {patch[1]} pixels, got {patch[0]}")


def recover(
    students: dict[str, Sam3Model],
    teacher: Sam3Model,
    batches: Iterator[Batch],
    resolutions: Sequence[int],
    device: str,
    recipe: Recipe,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[dict[str, Sam3Model], dict[str, Any]]:
    """Teaches the students, and returns their averaged weights (on the CPU, at their own resolution) and a report:
    losses before and after on batches that nobody learnt from, steps, seconds, and the curve."""
    for student in students.values():
        check_pair(student, teacher)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    place = torch.device(device)
    knows = Sized(copy.deepcopy(teacher).eval().requires_grad_(False), resolutions, place)
    pupils = {name: Student(model, resolutions, place, recipe) for name, model in students.items()}
    held = [_taught(knows, next(batches), place) for _ in range(HELD_BACK)]
    before = {name: pupil.judged(held) for name, pupil in pupils.items()}
    start = told = time.monotonic()
    curve: list[dict[str, Any]] = []
    sums: dict[str, list[Tensor]] = {name: [] for name in pupils}
    share, steps = 0.0, 0
    while share < 1.0:
        seconds = time.monotonic() - start
        steps += 1
        share = steps / recipe.steps if recipe.steps else seconds / (60 * recipe.minutes)
        batch, answers = _taught(knows, next(batches), place)
        for name, pupil in pupils.items():
            sums[name].append(pupil.step(batch, answers, share)["loss"])
        if share >= 1.0 or time.monotonic() - told > 20:
            means = {name: round(float(torch.stack(values).mean()), 4) for name, values in sums.items()}
            curve.append({"step": steps, "seconds": round(time.monotonic() - start, 1), "loss": means})
            progress(f"step {steps}, {seconds:.0f} s, loss " + ", ".join(f"{n} {v}" for n, v in means.items()))
            sums, told = {name: [] for name in pupils}, time.monotonic()
    report = {
        "recipe": asdict(recipe),
        "steps": steps,
        "seconds": round(time.monotonic() - start, 1),
        "loss_before": before,
        "loss_after": {name: pupil.judged(held) for name, pupil in pupils.items()},
        "curve": curve,
    }
    return {name: _finished(pupil, students[name]) for name, pupil in pupils.items()}, report


@torch.no_grad()
def _taught(teacher: Sized, batch: Batch, device: torch.device) -> tuple[Batch, Outputs]:
    batch = batch.to(device)
    return batch, teacher(batch)


def _finished(student: Student, origin: Sam3Model) -> Sam3Model:
    model = student.average.model.cpu()
    set_resolution(model, origin.config.vision_config.image_size)
    return model
