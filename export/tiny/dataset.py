"""Training batches: images at one resolution, prompts as token ids and example boxes, and the answers as indices.

Every scene is drawn once, by a loader process, and asked several questions, because images cost processor time and
prompts hardly any. The masks of a scene are one small map of object indices.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from export.tiny.configuration import PATCH, RESOLUTIONS
from export.tiny.prompts import MAX_BOXES, Question, exemplar_question, text_question
from export.tiny.random_scene import random_scene, training_seeds
from export.tiny.scenes import MAX_OBJECTS, frame_size, render
from export.tiny.tokenizer import build_tokenizer, encode

RESOLUTION_WEIGHTS = (0.52, 0.16, 0.16, 0.16)
TEXT_PROMPTS = 2
PROMPTS = TEXT_PROMPTS + 1  # the last one of every scene has example boxes
FRAME_SCALE = (1.3, 2.0)  # side of the drawn frame (square root of its pixels) over the network's resolution
Tokens = Callable[[str], tuple[np.ndarray, np.ndarray]]
NO_BOX = -10  # label of a padded box, as in the original


@dataclass(slots=True)
class Batch:
    """B scenes, P prompts each; G = MAX_OBJECTS, K = MAX_BOXES, M = 4 * resolution / 14 is the side of the mask head's
    output.

    pixels uint8 [B, R, R, 3]; index_map uint8 [B, 2M, 2M]; instance_index int64 [B, G] (value in the map, 0 padding);
    instance_boxes float32 [B, G, 4] cxcywh; input_ids and attention_mask int64 [B, P, 32]; answers int64 [B, P, G],
    positions among the instances, -1 padding; boxes float32 [B, K, 4] cxcywh and box_labels int64 [B, K] (1, 0, -10
    padding), of the last prompt.
    """

    pixels: torch.Tensor
    index_map: torch.Tensor
    instance_index: torch.Tensor
    instance_boxes: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    answers: torch.Tensor
    boxes: torch.Tensor
    box_labels: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pin_memory(self) -> "Batch":
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


def to_square(frame: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] to [R, R, 3]: stretched as in serving, bilinear with antialiasing."""
    return np.asarray(Image.fromarray(frame).resize((resolution, resolution), Image.Resampling.BILINEAR))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, R, R, 3] to float32 [B, 3, R, R] in -1..1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def cxcywh(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Corners to centre and size."""
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


@lru_cache(maxsize=1)
def _tokenizer():
    return build_tokenizer()


@lru_cache(maxsize=4096)
def _tokens(text: str) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = encode(_tokenizer(), [text])
    return np.array(ids[0]), np.array(mask[0])


def draw_batch(seeds: list[int], resolution: int, tokens: Tokens = _tokens) -> Batch:
    """Draws one batch: one scene and PROMPTS questions for each seed. `tokens` spells a text of 32 tokens for another
    tokenizer than the small checkpoint's: ids and mask, int64 [32]."""
    count, side = len(seeds), 2 * 4 * resolution // PATCH
    pixels = np.empty((count, resolution, resolution, 3), np.uint8)
    maps = np.empty((count, side, side), np.uint8)
    index = np.zeros((count, MAX_OBJECTS), np.int64)
    instance_boxes = np.zeros((count, MAX_OBJECTS, 4), np.float32)
    ids, mask = np.empty((count, PROMPTS, 32), np.int64), np.empty((count, PROMPTS, 32), np.int64)
    answers = np.full((count, PROMPTS, MAX_OBJECTS), -1, np.int64)
    boxes, labels = np.zeros((count, MAX_BOXES, 4), np.float32), np.full((count, MAX_BOXES), NO_BOX, np.int64)
    for b, seed in enumerate(seeds):
        rng = np.random.default_rng((1, seed))
        scene = random_scene(seed)
        drawn = render(scene, *frame_size(scene.aspect, (resolution * rng.uniform(*FRAME_SCALE)) ** 2))
        pixels[b] = to_square(drawn.frame, resolution)
        maps[b] = np.asarray(Image.fromarray(drawn.index_map).resize((side, side), Image.Resampling.NEAREST))
        for g, instance in enumerate(drawn.instances):
            index[b, g], instance_boxes[b, g] = instance.index, cxcywh(instance.box)
        questions: list[Question] = [text_question(rng, drawn.instances) for _ in range(TEXT_PROMPTS)]
        questions.append(exemplar_question(rng, drawn.instances))
        for p, question in enumerate(questions):
            ids[b, p], mask[b, p] = tokens(question.prompt.text)
            answers[b, p, : len(question.answer)] = question.answer
        for k, (box, label) in enumerate(zip(questions[-1].prompt.boxes, questions[-1].prompt.labels, strict=True)):
            boxes[b, k], labels[b, k] = cxcywh(box), label
    arrays = (pixels, maps, index, instance_boxes, ids, mask, answers, boxes, labels)
    return Batch(*map(torch.from_numpy, arrays))


class SceneBatches(IterableDataset):
    """An endless stream of batches of `size` scenes, each at one of RESOLUTIONS; every `run` is another stream.

    Each of `ranks` training processes draws scenes of its own, as does every loader process of each. The order of the
    resolutions is the same for all, so that none waits for another's larger images.
    """

    def __init__(self, size: int, run: int = 0, rank: int = 0, ranks: int = 1) -> None:
        self.size, self.run, self.rank, self.ranks = size, run, rank, ranks

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rng = np.random.default_rng((2, self.run, worker))
        seeds = training_seeds(self.rank * workers + worker, self.ranks * workers, self.run)
        while True:
            resolution = int(rng.choice(RESOLUTIONS, p=RESOLUTION_WEIGHTS))
            yield draw_batch([next(seeds) for _ in range(self.size)], resolution)
