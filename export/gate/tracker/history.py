"""What the gate lets objects remember: how old their memory maps and pointers are, and in which slots they lie.

transformers keeps maps and pointers by frame, so ages have to be such as a video makes them: a conditioning frame has a
map and a pointer, a frame of the last six has both, one of the last fifteen a pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.spec import Variant
from ensemble.tracker_interfaces import CONDITIONING_MAPS, EMPTY_AGE, RECENT_MAPS, RECENT_POINTERS, tracker_axes

OLDEST = 60
"""Frames since the oldest conditioning frame."""


@dataclass(frozen=True)
class History:
    """N objects with M slots for maps and P for pointers, as a call has them.

    `image_index` int32 [N]; `memory_age` int32 [N,M]; `pointer_age` fp32 [N,P]; `memory_frame` int32 [N,M] is the age
    in frames of each map, -1 where there is none. `masks` bool [N,4p,4p] are given masks, `keep` bool [N,4p,4p] the
    pixels that stay an object's, `hard` and `there` int32 [N] as the memory encoder takes them.
    """

    image_index: np.ndarray
    memory_age: np.ndarray
    memory_frame: np.ndarray
    pointer_age: np.ndarray
    masks: np.ndarray
    keep: np.ndarray
    hard: np.ndarray
    there: np.ndarray


def histories(variant: Variant, images: int) -> list[History]:
    """One object with one memory, three with some, and as many as a call may have with as much as it may have."""
    axes = tracker_axes(variant)
    most = axes["objects"].maximum
    whole = most, axes["maps"].maximum, axes["pointers"].maximum
    counts = dict.fromkeys([(1, 1, 1), (min(3, most), 4, 6), whole])
    rng = np.random.default_rng(variant.resolution)
    return [history(rng, variant.mask_size, images, *count) for count in counts]


def history(rng: np.random.Generator, size: int, images: int, objects: int, maps: int, pointers: int) -> History:
    """Drawn at random: each object remembers something, the first as much as its slots hold."""
    rows = [remembered(rng, maps, pointers, full=n == 0) for n in range(objects)]
    ages, frames, pointer_ages = (np.stack([row[i] for row in rows]) for i in range(3))
    masks = np.stack([rectangle(rng, size) for _ in range(objects)])
    flags = rng.integers(0, 2, (2, objects)).astype(np.int32)
    if objects > 1:  # both of each
        flags[:, :2] = [[0, 1], [1, 0]]
    index = (np.arange(objects) % images)[::-1].astype(np.int32)
    keep = ~np.stack([rectangle(rng, size) for _ in range(objects)])
    return History(index.copy(), ages, frames, pointer_ages, masks, keep, *flags)


def remembered(
    rng: np.random.Generator, maps: int, pointers: int, full: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`memory_age`, `memory_frame` and `pointer_age` of one object, in slots in no order."""
    most = min(CONDITIONING_MAPS, maps, pointers)
    given = most if full else int(rng.integers(1, most + 1))
    both = _some(rng, range(1, RECENT_MAPS + 1), min(maps, pointers) - given, full)
    later = range(RECENT_MAPS + 1, RECENT_POINTERS + 1)
    pointed = [*both, *_some(rng, later, pointers - given - len(both), full)]
    free = [age for age in range(1, OLDEST) if age not in pointed]
    conditioning = rng.choice(free, given, replace=False).tolist()
    shown = [*((0, age) for age in conditioning), *((age, age) for age in both)]
    slots = rng.permutation(maps)[: len(shown)]
    memory = np.full((2, maps), EMPTY_AGE, np.int32)
    memory[:, slots] = np.array(shown).T
    pointer_age = np.full(pointers, EMPTY_AGE, np.float32)
    pointer_age[rng.permutation(pointers)[: given + len(pointed)]] = [*conditioning, *pointed]
    return memory[0], memory[1], pointer_age


def rectangle(rng: np.random.Generator, size: int) -> np.ndarray:
    """A mask bool [size,size] of a rectangle somewhere in a frame."""
    y, x = rng.integers(0, size * 2 // 3, 2)
    height, width = rng.integers(size // 6, size // 2, 2)
    mask = np.zeros((size, size), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def _some(rng: np.random.Generator, ages: Sequence[int], most: int, full: bool) -> list[int]:
    most = max(0, min(most, len(ages)))
    count = most if full else int(rng.integers(0, most + 1))
    return rng.choice(ages, count, replace=False).tolist()
