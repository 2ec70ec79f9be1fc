"""The memory of all followed objects of a server: one allocation at the start, which never grows.

A slot is what one object remembers: memory maps of the last frames in which its mask was given (conditioning frames)
and of the last frames altogether, and pointers of as many. Slots are handed out and taken back; ages are counted from
the frame numbers that were written, so a slot needs no clearing.

A frame is written whole or not at all: where one fails half way it can be computed again, from the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ensemble.records import NUMPY_DTYPES
from ensemble.spec import Variant
from ensemble.tracker_interfaces import (
    CONDITIONING_MAPS,
    EMPTY_AGE,
    MEMORY_WIDTH,
    RECENT_MAPS,
    RECENT_POINTERS,
    sizes,
)
from ensemble.video.arrays import HOST, Arrays
from ensemble.video.sizes import MAPS, POINTERS, slot_bytes

NEVER = -1
"""In place of a frame's number: nothing was written there yet."""


class Remembered(NamedTuple):
    """What `tracker_step` is told of N objects, as named in `ensemble/tracker_interfaces.py`."""

    memory: Any
    memory_age: np.ndarray
    pointers: Any
    pointer_age: np.ndarray


class Written(NamedTuple):
    """Maps and pointers of one `write`, and where they will lie."""

    at_maps: Any
    at_pointers: Any
    maps: Any
    pointers: Any


class Bank:
    """Slots of one variant's tracker; for one thread, which computes."""

    def __init__(self, variant: Variant, slots: int, arrays: Arrays = HOST) -> None:
        dtype, width = NUMPY_DTYPES[variant.float_dtype], sizes(variant).hidden_size
        self.arrays = arrays
        with arrays.working():
            self._memory = arrays.zeros((slots * MAPS, variant.patches**2, MEMORY_WIDTH), dtype)
            self._pointers = arrays.zeros((slots * POINTERS, width), dtype)
        self._map_frames = np.full((slots, MAPS), NEVER)
        self._pointer_frames = np.full((slots, POINTERS), NEVER)
        self._written: list[Written] = []
        self.nbytes = slots * slot_bytes(variant)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is cleared and written in this block is remembered at its end; where the block raises, nothing of it.
        Nothing is read in it."""
        before = self._map_frames.copy(), self._pointer_frames.copy()
        try:
            yield
            with self.arrays.working():
                for written in self._written:  # needs no memory any more
                    self._memory[written.at_maps] = written.maps
                    self._pointers[written.at_pointers] = written.pointers
        except BaseException:
            self._map_frames, self._pointer_frames = before
            raise
        finally:
            self._written.clear()

    def clear(self, slot: int) -> None:
        """Forgets what an earlier object left there; inside `writing`."""
        self._map_frames[slot] = self._pointer_frames[slot] = NEVER

    def write(
        self, slots: Sequence[int], frames: Sequence[int], rows: list[int], memory: Any, pointers: Any, given: bool
    ) -> None:
        """One frame of each of these objects, which are these `rows` of memory [N,p²,64] and pointers [N,c]. Of masks
        that were `given` the oldest of the conditioning frames makes room, of others what has become too old. Inside
        `writing`."""
        slot, frame = np.asarray(slots), np.asarray(frames)
        if given:
            place = self._map_frames[slot, :CONDITIONING_MAPS].argmin(1)  # nothing is older than any frame
            at_map = at_pointer = place
        else:
            at_map = CONDITIONING_MAPS + frame % RECENT_MAPS
            at_pointer = CONDITIONING_MAPS + frame % RECENT_POINTERS
        index = self.arrays.indices
        with self.arrays.working():
            chosen = index(np.array(rows))
            places = index(slot * MAPS + at_map), index(slot * POINTERS + at_pointer)
            self._written.append(Written(*places, memory[chosen], pointers[chosen]))
        self._map_frames[slot, at_map], self._pointer_frames[slot, at_pointer] = frame, frame

    def read(self, slots: Sequence[int], frames: Sequence[int]) -> Remembered:
        """What these objects, each written before, remember at these frames of their videos. The axes of maps and
        pointers are as long as the object that remembers most needs."""
        slot, now = np.asarray(slots), np.asarray(frames)[:, None]
        maps = _ages(now, self._map_frames[slot], RECENT_MAPS)
        pointers = _ages(now, self._pointer_frames[slot], RECENT_POINTERS)
        at_map, at_pointer = _filled_first(maps), _filled_first(pointers)
        maps[:, :CONDITIONING_MAPS] = np.minimum(maps[:, :CONDITIONING_MAPS], 0)  # a given mask does not grow old
        index, rows = self.arrays.indices, slot[:, None]
        with self.arrays.working():
            memory = self._memory[index(rows * MAPS + at_map)]
            told = self._pointers[index(rows * POINTERS + at_pointer)]
        memory_age, pointer_age = np.take_along_axis(maps, at_map, 1), np.take_along_axis(pointers, at_pointer, 1)
        return Remembered(memory, memory_age.astype(np.int32), told, pointer_age.astype(np.float32))


def _ages(now: np.ndarray, written: np.ndarray, oldest: int) -> np.ndarray:
    """Frames since each was written; EMPTY_AGE where nothing was, and where it is no conditioning frame and too old."""
    age = now - written
    gone = written == NEVER
    gone[:, CONDITIONING_MAPS:] |= age[:, CONDITIONING_MAPS:] > oldest
    return np.where(gone, EMPTY_AGE, age)


def _filled_first(ages: np.ndarray) -> np.ndarray:
    """Places [N,most], those that hold something first, `most` as many as any object has filled."""
    most = int((ages != EMPTY_AGE).sum(1).max())
    return np.argsort(ages == EMPTY_AGE, axis=1, kind="stable")[:, :most]
