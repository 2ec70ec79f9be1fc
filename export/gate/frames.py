"""The frames that the gate looks at, with prompts and exemplar boxes: drawn scenes, or a folder of photographs.

The drawn scenes need no download, and they show what their prompts name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ensemble.spec import Variant
from export.gate.reference import Sample, make_sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FIRST_SEED = 7_000_000
"""Seeds of the drawn frames start here, apart from those of training and validation."""


@dataclass(frozen=True)
class Frame:
    """`pixels` uint8 [3,R,R]; `prompts` are things to look for, `box` (cx, cy, w, h in 0..1) surrounds one thing in
    it."""

    pixels: np.ndarray
    prompts: tuple[str, ...]
    box: tuple[float, float, float, float]


def to_pixels(image: Image.Image, resolution: int) -> np.ndarray:
    """The image stretched to a square by the antialiased bilinear filter of SAM3's processor: uint8 RGB [3,R,R]."""
    square = image.convert("RGB").resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def drawn_frames(count: int, resolution: int) -> list[Frame]:
    """Scenes of coloured shapes; the prompts name the first shapes of each, and one thing that may be absent."""
    from export.tiny.random_scene import random_scene
    from export.tiny.scenes import render

    frames: list[Frame] = []
    seed = FIRST_SEED
    while len(frames) < count:
        drawn = render(random_scene(seed, aspect=16 / 9, count=5), 720, 1280)
        seed += 1
        if not drawn.instances:
            continue
        names = dict.fromkeys([f"{i.colour} {i.shape}" for i in drawn.instances] + ["white star"])
        x0, y0, x1, y1 = drawn.instances[0].box
        box = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        frames.append(Frame(to_pixels(Image.fromarray(drawn.frame), resolution), tuple(names), box))
    return frames


def read_frames(folder: Path, count: int, resolution: int, prompts: Sequence[str]) -> list[Frame]:
    """The first `count` images of `folder`, to be searched for `prompts`. Raises ValueError where there are none."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)[:count] if folder.is_dir() else []
    if not paths:
        raise ValueError(
            f"expected images ({', '.join(SUFFIXES)}) in {folder} to verify with, found none; leave --frames out to use"
            " drawn ones"
        )
    return [Frame(to_pixels(Image.open(p), resolution), tuple(prompts), (0.5, 0.5, 0.4, 0.4)) for p in paths]


def gate_samples(frames: Sequence[Frame], tokenizer: Tokenizer, variant: Variant) -> list[Sample]:
    """Two samples of the same frames: text prompts alone, and prompts of which some have one box, some two (one of
    them negative), some none."""
    frames = frames[: variant.max_batch]
    pixels = np.stack([frame.pixels for frame in frames])
    prompts = list(dict.fromkeys(name for frame in frames for name in frame.prompts[:2]))
    wanted = [(image, prompts.index(name)) for image, frame in enumerate(frames) for name in frame.prompts[:2]]
    pairs = [*wanted, (len(frames) - 1, 0)][: variant.max_pairs]
    boxes = {n: _boxes(frames[image], n, variant.max_boxes) for n, (image, _) in enumerate(pairs) if n % 3 != 2}
    return [
        make_sample(pixels, tokenizer, prompts, pairs),
        make_sample(pixels, tokenizer, prompts, pairs, boxes, slots=variant.max_boxes),
    ]


def _boxes(frame: Frame, n: int, most: int) -> Sequence[tuple[float, ...]]:
    negative = (0.1, 0.15, 0.15, 0.2, 0)
    return [(*frame.box, 1), negative][: min(1 + n % 3, most)]
