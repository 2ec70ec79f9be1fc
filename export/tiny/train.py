"""The training of the small checkpoint, from fresh weights or from another checkpoint.

Loader processes draw scenes without end, and the GPU learns from each of them once. A slow average of the weights is
evaluated on held-out scenes from time to time, and saved with the training curve.
"""

import argparse
import copy
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from export.tiny.configuration import RESOLUTIONS, build_model, normalise_pyramid, save_checkpoint, set_resolution
from export.tiny.dataset import Batch, SceneBatches, draw_batch, normalised
from export.tiny.evaluate import evaluate
from export.tiny.losses import losses, match, matching_costs, targets_of
from export.tiny.network import Positions, Predictions, forward_all_layers
from export.tiny.parallel import Team
from export.tiny.predictor import TorchPredictor, load_model
from export.tiny.random_scene import FIRST_TRAINING_SEED
from export.tiny.tokenizer import build_tokenizer

log = logging.getLogger(__name__)

CURVE = "training_curve.json"


EXAMPLES = """examples:
  python -m export.tiny.train --minutes 9 --output build/tiny
  torchrun --nproc-per-node 4 -m export.tiny.train --minutes 9 --start-from build/tiny --output build/tiny-2"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters."""

    scenes: int = 96  # a batch and GPU; three prompts each
    learning_rate: float = 3e-4
    warm_up: int = 400  # steps
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.999  # decay of the averaged weights
    seed: int = 0


class Trainer:
    """One model, its average, its optimiser; `step` learns from one batch."""

    def __init__(self, recipe: Recipe, team: Team, start_from: Path | None = None) -> None:
        self.recipe, self.team, self.device, self.steps = recipe, team, team.device, 0
        self.tokenizer = build_tokenizer()
        if start_from:
            self.model = load_model(start_from, RESOLUTIONS[0], str(self.device))[0].train()
        else:
            self.model = build_model(self.tokenizer, recipe.seed).to(self.device).train()
            seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 16)
            pixels = draw_batch(list(seeds), RESOLUTIONS[0]).pixels.to(self.device)
            normalise_pyramid(self.model, normalised(pixels))
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.positions = Positions(self.model)
        self.tables = {resolution: self._tables(resolution) for resolution in RESOLUTIONS}
        # The half-size FPN level is never used; its weights keep their first values.
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        fused = self.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=recipe.weight_decay, fused=fused)

    def _tables(self, resolution: int) -> list[torch.Tensor]:
        set_resolution(self.model, resolution)
        return [layer.position_ids for layer in self.model.vision_encoder.backbone.layers]

    def _use(self, resolution: int) -> None:
        for layer, table in zip(self.model.vision_encoder.backbone.layers, self.tables[resolution], strict=True):
            layer.position_ids = table

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Learns from a batch on the device; `progress` in 0..1 sets the learning rate (linear warm-up, then a cosine
        to zero). Returns the loss, its parts and the gradient's norm."""
        rate = self.recipe.learning_rate * min(1.0, (self.steps + 1) / self.recipe.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        self._use(batch.pixels.shape[1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            predictions = forward_all_layers(self.model, batch, self.positions)
        parts = self._losses(predictions, batch)
        self.optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        self.team.average_gradients(self.parameters)
        parts["gradient"] = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimiser.step()
        self.steps += 1
        decay = min(self.recipe.average, self.steps / (self.steps + 20))  # a short average at first
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return parts

    def _losses(self, predictions: Predictions, batch: Batch) -> dict[str, torch.Tensor]:
        targets = targets_of(batch)
        costs, counts = matching_costs(predictions, targets), targets.counts
        rows = match(costs.cpu().numpy(), counts.cpu().numpy())
        rows = torch.from_numpy(rows).to(self.device, non_blocking=True)
        return losses(predictions, targets, batch.index_map, rows)

    def evaluate(self, scenes: int, resolutions: Sequence[int]) -> dict[str, dict]:
        """Figures of the averaged weights on held-out scenes, by resolution."""
        results = {}
        for resolution in resolutions:
            set_resolution(self.average, resolution)
            results[str(resolution)] = evaluate(TorchPredictor(self.average, self.tokenizer, resolution), scenes)
        return results


def loader(recipe: Recipe, workers: int, team: Team) -> Iterator[Batch]:
    """Batches without end, drawn by `workers` processes (0: by this one)."""
    batches = SceneBatches(recipe.scenes, recipe.seed, team.rank, team.size)
    how = dict(num_workers=workers, pin_memory=torch.cuda.is_available())
    return iter(DataLoader(batches, batch_size=None, **how, **(dict(prefetch_factor=3) if workers else {})))


def train(recipe: Recipe, options: argparse.Namespace) -> dict:
    """Trains until the time or the steps are used up. Returns the curve that was written."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    team = Team(options.device)
    batches = loader(recipe, options.workers, team)
    trainer = Trainer(recipe, team, options.start_from)
    curve: dict = {"recipe": recipe_of(recipe, trainer, options), "points": []}
    runs = [*earlier_runs(options.start_from), curve]
    started = last = time.monotonic()
    window: list[dict[str, torch.Tensor]] = []
    progress = 0.0
    while progress < 1.0:
        spent = time.monotonic() - started
        progress = team.agree((trainer.steps + 1) / options.steps if options.steps else spent / (60 * options.minutes))
        parts = trainer.step(next(batches).to(team.device), progress)
        window.append({name: value.detach() for name, value in parts.items()})
        if not team.leads:
            window.clear()
        elif progress >= 1.0 or time.monotonic() - last >= options.judge_every:
            mean = {name: round(float(torch.stack([w[name] for w in window]).mean()), 4) for name in window[0]}
            point: dict = {"step": trainer.steps, "seconds": round(time.monotonic() - started, 1), **mean}
            if options.judge_scenes:
                point["validation"] = trainer.evaluate(options.judge_scenes, options.judge_resolution)
            curve["points"].append(point)
            log_point(point)
            save_checkpoint(trainer.average, trainer.tokenizer, options.output)
            (options.output / CURVE).write_text(json.dumps({"runs": runs}, indent=1) + "\n")
            window, last = [], time.monotonic()
    team.leave()
    return curve


def earlier_runs(start_from: Path | None) -> list[dict]:
    """The curves of the runs that led to a checkpoint, from the file in its folder or beside it."""
    for folder in (start_from, start_from.parent) if start_from else ():
        if (folder / CURVE).is_file():
            return json.loads((folder / CURVE).read_text())["runs"]
    return []


def recipe_of(recipe: Recipe, trainer: Trainer, options: argparse.Namespace) -> dict:
    """What the curve's file says of the run: hyperparameters, sizes, machine, version and start."""
    device = torch.cuda.get_device_name() if trainer.device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    values = {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}
    size = sum(p.numel() for p in trainer.model.parameters())
    return {
        **values,
        "parameters": size,
        "device": device,
        "torch": torch.__version__,
        "processes": trainer.team.size,
        "started_from": str(options.start_from) if options.start_from else None,
    }


def log_point(point: dict) -> None:
    """Logs a point of the curve: a line for the loss, and one for each evaluation."""
    parts = " ".join(f"{k} {v:.3f}" for k, v in point.items() if isinstance(v, float) and k != "seconds")
    log.info("%6d %6.0fs %s", point["step"], point["seconds"], parts)
    for resolution, result in point.get("validation", {}).items():
        for prompts in ("text", "exemplar"):
            r = result[prompts]
            figures = " ".join(f"{kind} {r[kind]['AP']:.3f}/{r[kind]['AP50']:.3f}" for kind in ("box", "mask"))
            log.info("       %s %s: %s presence %.3f", resolution, prompts, figures, r["presence_accuracy"])


def main(argv: Sequence[str] | None = None) -> dict:
    """The command line. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tiny.train",
        description="Train the small checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=9.0)
    length.add_argument("--steps", type=int, default=0, help="a number of steps instead of a time")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint and its curve")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    workers = max(0, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", 1)) - 1)
    parser.add_argument("--workers", type=int, default=workers, help="loader processes a GPU")
    parser.add_argument("--start-from", type=Path, help="a checkpoint to continue from, with a fresh optimiser")
    parser.add_argument("--scenes", type=int, default=Recipe().scenes, help="scenes a batch and GPU")
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--warm-up", type=int, default=Recipe().warm_up, help="steps of linear warm-up")
    parser.add_argument("--seed", type=int, default=Recipe().seed, help="another number, other scenes")
    parser.add_argument("--judge-every", type=float, default=60.0, help="seconds between evaluations")
    parser.add_argument("--judge-scenes", type=int, default=60, help="held-out scenes of an evaluation, 0 for none")
    parser.add_argument("--judge-resolution", type=int, nargs="+", default=[RESOLUTIONS[0]])
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(options.scenes, options.learning_rate, options.warm_up, seed=options.seed)
    curve = train(recipe, options)
    if curve["points"]:  # the leading process's
        last = curve["points"][-1]
        print(json.dumps({"output": str(options.output), "steps": last["step"], "last": last}))
    return curve


if __name__ == "__main__":
    main()
