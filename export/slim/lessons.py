"""What a student learns from: batches of drawn scenes, or of a user's own frames with the words to look for.

Loader processes make the batches; every batch has one resolution, so that the sizes of later use are all learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from export.gate.frames import SUFFIXES
from export.tiny.dataset import NO_BOX, PROMPTS, Batch, draw_batch, to_square
from export.tiny.prompts import MAX_BOXES
from export.tiny.random_scene import training_seeds

FIRST_RUN = 100
"""Streams of scenes below this number belong to the training of the small checkpoint."""


class Lessons(IterableDataset):
    """An endless stream of batches of `size` scenes at one of `resolutions` each, in proportion to `shares`; every
    `seed` is another stream, the same every time. Where `frames` are given, they are shown instead of drawn scenes,
    each with PROMPTS of the `words`; such batches have no answers."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        size: int,
        resolutions: Sequence[int],
        shares: Sequence[float],
        seed: int = 0,
        frames: Sequence[Path] = (),
        words: Sequence[str] = (),
    ) -> None:
        self.spelling = tokenizer.to_str()
        self.size, self.seed = size, seed
        self.resolutions, self.shares = list(resolutions), np.array(shares, float) / sum(shares)
        self.frames, self.words = list(frames), list(words)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rng = np.random.default_rng((4, self.seed, worker))
        tokens = _speller(self.spelling)
        seeds = training_seeds(worker, workers, FIRST_RUN + self.seed)
        while True:
            resolution = int(rng.choice(self.resolutions, p=self.shares))
            if self.frames:
                yield self._of_frames(rng, resolution, tokens)
            else:
                yield draw_batch([next(seeds) for _ in range(self.size)], resolution, tokens)

    def _of_frames(self, rng: np.random.Generator, resolution: int, tokens: Any) -> Batch:
        chosen = rng.choice(len(self.frames), self.size, replace=len(self.frames) < self.size)
        pixels = np.stack([_square(self.frames[n], resolution) for n in chosen])
        spelled = [tokens(self.words[n]) for n in rng.integers(len(self.words), size=self.size * PROMPTS)]
        ids, mask = (np.stack(part).reshape(self.size, PROMPTS, -1) for part in zip(*spelled, strict=True))
        none = dict(
            index_map=np.zeros((self.size, 1, 1), np.uint8),
            instance_index=np.zeros((self.size, 1), np.int64),
            instance_boxes=np.zeros((self.size, 1, 4), np.float32),
            answers=np.full((self.size, PROMPTS, 1), -1, np.int64),
            boxes=np.zeros((self.size, MAX_BOXES, 4), np.float32),
            box_labels=np.full((self.size, MAX_BOXES), NO_BOX, np.int64),
        )
        arrays = dict(pixels=pixels, input_ids=ids, attention_mask=mask, **none)
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def loader(lessons: Lessons, workers: int) -> Iterator[Batch]:
    """Batches without end, made by `workers` processes (0: by this one)."""
    how: dict[str, Any] = dict(num_workers=workers, pin_memory=torch.cuda.is_available())
    return iter(DataLoader(lessons, batch_size=None, **how, **(dict(prefetch_factor=3) if workers else {})))


def frames_in(folder: Path) -> list[Path]:
    """The images of a folder. Raises ValueError where there are none."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"expected images ({', '.join(SUFFIXES)}) in {folder} to learn from, found none")
    return paths


def _square(path: Path, resolution: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return to_square(np.asarray(image.convert("RGB")), resolution)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected an image to learn from, {path} cannot be read ({error}); take it out") from error


def _speller(spelling: str) -> Any:
    tokenizer = Tokenizer.from_str(spelling)

    @lru_cache(maxsize=4096)
    def tokens(text: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = tokenizer.encode(text)
        return np.array(encoded.ids, np.int64), np.array(encoded.attention_mask, np.int64)

    return tokens
