"""The training of the small tracker on drawn clips, on the small checkpoint's frozen trunk.

Loader processes draw clips without end; each is seen once, and once backwards in a mirror. Clips grow from 3 to 8
frames, so that the first steps, which learn what a memory is, are many; a run that goes on from another one takes
longer clips (`--stages`). A slow average of the weights is saved every minute.
"""

import argparse
import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import Value
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Sam3VideoModel

from ensemble.tracker_interfaces import RECENT_MAPS
from export.tiny import CHECKPOINT
from export.tiny.configuration import RESOLUTIONS
from export.tiny.random_scene import training_seeds
from export.tiny.video.captured import CapturedSteps, Plan, passes
from export.tiny.video.clips import draw_clips, reversed_clips
from export.tiny.video.configuration import WEIGHTS_FILE, load_tracker_weights, random_video_model, tracker_weights
from export.tiny.video.losses import Losses, losses, visible
from export.tiny.video.network import Features, TrackerNetwork
from export.tiny.video.rollout import Memory, mixed, reduced, seed, tracked_entry

log = logging.getLogger(__name__)
CURVE_FILE = "training_curve.json"
STAGES = ((0.2, 3), (0.5, 5), (1.0, 8))  # until this share of the training, clips of that many frames
SHORT = 8  # frames; of longer clips a batch has fewer, so that it has as many frames
RESOLUTION_WEIGHTS = (0.4, 0.2, 0.2, 0.2)
STAGES_HELP = "until a share of the training, clips of that many frames; default: " + " ".join(
    f"{until:g}:{frames}" for until, frames in STAGES
)
EXAMPLE = "example: python -m export.tiny.video.train --minutes 7.5 --output build/tracker"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters."""

    clips: int = 32  # a batch, of up to SHORT frames
    objects: int = 3  # a clip
    learning_rate: float = 8e-4
    warm_up: int = 150  # steps
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.998  # decay of the averaged weights
    rough_seeds: float = 0.3  # share of the given masks that are not exact
    seed_again: float = 0.3  # share of the batches in which objects get a mask for a second time
    seed: int = 0
    stages: tuple[tuple[float, int], ...] = STAGES

    def clips_of(self, frames: int) -> int:
        """How many clips of so many frames make a batch."""
        return max(1, round(self.clips * min(1.0, SHORT / frames)))

    def frames_at(self, progress: float) -> int:
        """How long clips are at a share of the training."""
        return next(frames for until, frames in self.stages if progress <= until or until == self.stages[-1][0])


def stage(text: str) -> tuple[float, int]:
    """A stage of the command line such as "0.4:12": until this share of the training, clips of that many frames."""
    until, _, frames = text.partition(":")
    if not frames.isdigit() or int(frames) < 2:
        raise ValueError(f'expected a share and frames such as "0.4:12", got "{text}"')
    return float(until), int(frames)


class ClipBatches(IterableDataset):
    """An endless stream of batches at one of RESOLUTIONS each, as tensors of a `ClipBatch`; `frames` is shared with the
    trainer, which makes clips longer as it goes."""

    def __init__(self, recipe: Recipe, frames: Synchronized) -> None:
        self.recipe, self.frames = recipe, frames

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rng = np.random.default_rng((8, self.recipe.seed, worker))
        seeds = training_seeds(worker, workers, run=10 + self.recipe.seed)
        while True:
            resolution = int(rng.choice(RESOLUTIONS, p=RESOLUTION_WEIGHTS))
            frames = self.frames.value
            drawn = [next(seeds) for _ in range(self.recipe.clips_of(frames))]
            batch = draw_clips(drawn, frames, resolution, self.recipe.objects)
            for way in (batch, reversed_clips(batch, rng)):
                yield tuple(torch.from_numpy(part) for part in (way.frames, way.maps, way.objects))  # type: ignore


def roughened(masks: Tensor, share: float) -> Tensor:
    """Masks [N, h, w] in 0..1; a `share` of them as a detector might give them: grown, shrunk or moved by a pixel, with
    an uneven edge. None becomes empty."""
    n, device = len(masks), masks.device
    x = masks[:, None]
    grown, shrunk = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    noise = F.interpolate(torch.rand(n, 1, 12, 12, device=device), size=x.shape[-2:], mode="bilinear")
    level = torch.rand(n, 1, 1, 1, device=device)
    rough = torch.where(noise > 0.3 + 0.4 * level, grown, shrunk)
    for axis in (2, 3):
        way = torch.rand(n, 1, 1, 1, device=device)
        moved = torch.where(way < 0.5, rough.roll(1, axis), rough.roll(-1, axis))
        rough = torch.where((way < 0.2) | (way > 0.8), moved, rough)
    chosen = (torch.rand(n, 1, 1, 1, device=device) < share) & (rough.flatten(1).sum(1) > 0)[:, None, None, None]
    return torch.where(chosen, rough, x)[:, 0]


class Trainer:
    """The tracker, its average and its optimiser; `step` learns from one batch."""

    def __init__(
        self, recipe: Recipe, device: torch.device, start_from: Path | None = None, captured: bool = False
    ) -> None:
        self.recipe, self.device, self.steps = recipe, device, 0
        self.knows = start_from is not None
        self.model: Sam3VideoModel = random_video_model(CHECKPOINT, seed=recipe.seed)
        if start_from:
            load_tracker_weights(self.model, start_from)
        self.model.to(device)
        self.network = TrackerNetwork(self.model, RESOLUTIONS).to(device)
        self.parameters = self.network.trainable()
        self.average = [p.detach().clone() for p in self.parameters]
        fused = device.type == "cuda"
        betas = (0.9, 0.98)
        self.optimiser = torch.optim.AdamW(self.parameters, 0.0, betas, weight_decay=recipe.weight_decay, fused=fused)
        self.rng = np.random.default_rng((9, recipe.seed))
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.gradients: Callable[[Sequence[Tensor], Plan], Losses] = (
            CapturedSteps(self._rollout, self.parameters)
            if captured
            else lambda batch, plan: passes(self._rollout, batch, plan, self.parameters)
        )

    def step(self, batch: Sequence[Tensor], progress: float) -> Losses:
        """Learns from a batch on the device; `progress` in 0..1 sets the learning rate (warm-up, then a cosine)."""
        rate = self.recipe.learning_rate * min(1.0, (self.steps + 1) / self.recipe.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
        told = self.gradients(batch, self._plan(batch[0].shape[1], trust=self.knows or progress > 0.3))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.steps += 1
        if not torch.isfinite(norm):
            log.warning("step %d: the gradient is not finite, left out", self.steps)
            return told
        self.optimiser.step()
        decay = min(self.recipe.average, self.steps / (self.steps + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return told

    def _plan(self, frames: int, trust: bool) -> Plan:
        again = frames > 2 and self.rng.random() < self.recipe.seed_again
        if isinstance(self.gradients, CapturedSteps):  # few plans, since each is captured by itself
            return Plan(3, frames // 2, trust) if again else Plan(RECENT_MAPS, None, trust)
        when = int(self.rng.integers(1, frames)) if again else None
        return Plan(int(self.rng.integers(1, RECENT_MAPS + 1)), when, trust)

    def _rollout(self, batch: Sequence[Tensor], plan: Plan) -> Losses:
        """All frames of a batch in order; without `trust`, memory is told whether objects are there."""
        frames, maps, objects = batch
        trust, again = plan.trust, plan.again
        b, t = frames.shape[:2]
        self.network.at(frames.shape[2])
        clip = torch.arange(b, device=self.device).repeat_interleave(objects.shape[1])
        truth = maps[clip] == objects.flatten()[:, None, None, None]  # [N, T, 8p, 8p]
        real = objects.flatten() > 0
        truth &= real[:, None, None, None]
        shown, small = visible(truth), reduced(truth)
        memory = Memory(recent=plan.recent)
        steps = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            every = self.network.features(self.network.see(frames.flatten(0, 1)))
            rough = partial(roughened, share=self.recipe.rough_seeds)
            first, score = seed(self.network, every.of(clip * t), rough(small[:, 0]), 0, sure=True)
            memory.write(first, given_any=True)
            for k in range(1, t):
                seen: Features = every.of(clip * t + k)
                tracked = self.network.step(seen, *memory.read(k))
                steps.append(tracked)
                if k == t - 1:
                    break
                entry, _ = tracked_entry(self.network, seen, tracked, k, None if trust else shown[:, k])
                if k == again:
                    given, _ = seed(self.network, seen, rough(small[:, k]), k, sure=True)
                    entry = mixed(shown[:, k], given, entry)
                memory.write(entry, given_any=k == again)
        told = losses(
            torch.cat([s.masks for s in steps]),
            torch.cat([s.ious for s in steps]),
            torch.cat([s.score for s in steps]),
            truth[:, 1:].transpose(0, 1).flatten(0, 1),
            real.repeat(t - 1),
            shared=0.1 if trust else 1.0,
        )
        # Masks that are given are there.
        told.total = told.total + 0.2 * (F.softplus(-score.float()) * real).sum() / real.sum().clamp(min=1)
        return told

    def averaged(self) -> Sam3VideoModel:
        """A copy of the model with the averaged weights."""
        model = copy.deepcopy(self.model)
        pairs = zip(TrackerNetwork(model, RESOLUTIONS).trainable(), self.average, strict=True)
        with torch.no_grad():
            for parameter, value in pairs:
                parameter.copy_(value)
        return model.eval()

    def save(self, folder: Path) -> None:
        """Writes the averaged tracker, fp16 on disk."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tracker_weights(self.averaged()), folder / f"{WEIGHTS_FILE}.new", metadata={"format": "pt"})
        os.replace(folder / f"{WEIGHTS_FILE}.new", folder / WEIGHTS_FILE)  # a run that is ended leaves a whole file


def train(recipe: Recipe, options: argparse.Namespace) -> dict:
    """Trains until the time or the steps are used up. Returns the curve that was written."""
    started = last = time.monotonic()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device(options.device)
    frames = Value("i", recipe.frames_at(options.start_at))
    how: dict = dict(num_workers=options.workers, pin_memory=device.type == "cuda")
    if options.workers:
        how |= dict(prefetch_factor=2, multiprocessing_context="fork")
    batches = iter(DataLoader(ClipBatches(recipe, frames), batch_size=None, **how))  # drawing starts before the model
    waiting = 0.0
    trainer = Trainer(recipe, device, options.start_from, options.captured)
    values = {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    curve: dict = {"recipe": {**values, "device": where, "torch": torch.__version__}, "points": []}
    window: list[Losses] = []
    first, progress = trainer.steps, options.start_at
    while progress < 1.0:
        spent = time.monotonic() - started
        share = (trainer.steps - first + 1) / options.steps if options.steps else spent / (60 * options.minutes)
        progress = options.start_at + (1 - options.start_at) * share
        frames.value = recipe.frames_at(progress)
        before = time.monotonic()
        batch = [part.to(device, non_blocking=True) for part in next(batches)]
        length = batch[0].shape[1]  # clips that were drawn ahead are of the stage before
        waiting += time.monotonic() - before
        told = trainer.step(batch, progress)
        window.append(Losses(*(getattr(told, f.name).detach() for f in fields(told))))
        if progress >= 1.0 or time.monotonic() - last >= options.save_every:
            mean = {f.name: torch.stack([getattr(w, f.name) for w in window]).mean() for f in fields(Losses)}
            point = {"step": trainer.steps, "seconds": round(time.monotonic() - started, 1), "frames": length}
            point |= {"waiting": round(waiting, 1), **{name: round(float(value), 4) for name, value in mean.items()}}
            curve["points"].append(point)
            log.info(" ".join(f"{name} {value}" for name, value in point.items()))
            trainer.save(options.output)
            (options.output / CURVE_FILE).write_text(json.dumps(curve, indent=1) + "\n")
            window, last = [], time.monotonic()
    return curve


def main(argv: Sequence[str] | None = None) -> dict:
    """The command line. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser("python -m export.tiny.video.train", description=__doc__, epilog=EXAMPLE)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=7.5, help="start of the program included")
    length.add_argument("--steps", type=int, default=0, help="a number of steps instead of a time")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tracker's weights and its curve")
    parser.add_argument("--start-from", type=Path, help="folder of an earlier run, to go on with a fresh optimiser")
    parser.add_argument("--start-at", type=float, default=0.0, help="share of the schedule to begin at, 0 to 1")
    parser.add_argument("--captured", action="store_true", help="steps as CUDA graphs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2), help="drawing processes")
    parser.add_argument("--clips", type=int, default=Recipe().clips, help=f"clips a batch, of {SHORT} frames")
    parser.add_argument("--stages", nargs="+", type=stage, default=STAGES, metavar="SHARE:FRAMES", help=STAGES_HELP)
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--warm-up", type=int, default=Recipe().warm_up, help="steps of linear warm-up")
    parser.add_argument("--average", type=float, default=Recipe().average, help="decay of the averaged weights")
    parser.add_argument("--seed", type=int, default=Recipe().seed, help="another number, other clips")
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    learning = dict(learning_rate=options.learning_rate, warm_up=options.warm_up, average=options.average)
    recipe = Recipe(options.clips, **learning, seed=options.seed, stages=tuple(options.stages))
    curve = train(recipe, options)
    print(json.dumps({"output": str(options.output), "last": curve["points"][-1]}))
    return curve


if __name__ == "__main__":
    main()
