"""The motion gate: tells frames in which nothing moved since the last one that was sent, so that they need not be sent.

A frame is compared with the one that was sent last, in the means of a grid of cells. What a change of light (gain and
offset) or a small shift of the whole picture (a pole in the wind) explains is taken away first, by least squares over
the cells that fit. A cell has changed where what is left exceeds a contrast and the noise that this cell usually has.
Changed cells that lie together and cover the smallest moving area make the frame one that is sent; it is then what
later frames are compared with. So an object that stops is seen once more after it stopped, a lamp that is switched
costs one frame, and slow movement adds up until it counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CELLS = 5400
"""Cells of the grid, about: 96 x 54 where the frame is 1920 x 1080."""
ROWS, COLUMNS = 2, 4
"""Pixels that are read in each cell: more would cost more than half a millisecond a frame."""
CHANNELS = (0, 1, 2, 1, 2, 1, 0, 1)
"""Of those pixels, which channel: together red and blue count once, green twice, as brightness weighs them."""
RED, BLUE = slice(0, None, 6), slice(2, 5, 2)
"""The pixels whose channel is red, and blue."""
CONTRAST = 6.0
"""Grey levels by which a cell has to change at the usual sensitivity."""
NOISES = 5.0
"""And the mean deviations of its noise beyond that."""
FIRST_NOISE, MOST_NOISE = 1.0, 6.0
"""Grey levels: the least noise that a cell begins with, and the most that is believed."""
SETTLED, SLOW = 8, 64
"""Frames over which the comparison averages after a frame was sent, and the pace at which it follows from then on."""
LEARNING = 32
"""Frames over which a cell's noise is learned."""
GAIN, OFFSET, SHIFT = 0.35, 30.0, 1.2
"""The largest changes of light, as a part of the contrast and in grey levels, and the largest shift in cells that are
no movement."""
EDGES, MOST_EDGE = 4.0, 0.8
"""Of the contrast of an edge, what a shift by one cell may leave unexplained, and the most of it: few pixels of a cell
are read, and an edge leaps from one to the next. Of colour, where fewer are read, all counts twice."""
EVERY = 4
"""Frames from one lesson in noise to the next: each takes time."""
FRESH = 1.3
"""The noise of a comparison with a single frame, over that of one with the mean of many."""

STEADY = np.diag([1.0, 1e4, 1e3, 1e3]).astype(np.float32)
"""Keeps least squares steady where a picture has no texture."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What counts as movement. `sensitivity` is 0 to 1: each half is a factor of four in contrast; `smallest` the area
    that has to move, in fractions of the frame; `regions` polygons of (x, y) in 0..1 of the frame in which nothing
    counts; `refresh_s` the longest time in seconds without a frame that is sent. Raises ValueError where `regions`
    cover the whole frame.
    """

    sensitivity: float = 0.5
    smallest: float = 0.0005
    refresh_s: float = 10.0
    regions: tuple[tuple[tuple[float, float], ...], ...] = ()

    def __post_init__(self) -> None:
        if self.regions and not watched(self.regions, 72, 128).any():
            raise ValueError("expected regions that leave a part of the frame, got regions that cover all of it")


class Reference:
    """What frames are compared with: the frame that was sent last, and the mean of the still ones since. `size` is
    height and width of the frame, `tail` how many more frames are sent whether anything moves or not."""

    def __init__(self, cells: NDArray[np.float32], size: tuple[int, int], time_s: float, tail: int) -> None:
        self.mean = cells.copy()  # [2, rows, columns]
        self.size, self.time_s, self.tail = size, time_s, tail
        self.frames = 1
        self._ways: NDArray[np.float32] | None = None

    def residual(
        self, cells: NDArray[np.float32], limit: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, float]:
        """What light and shift do not explain of the cells' difference, [2, rows, columns]; the change of light, 1 for
        the largest that is no movement, and the shift in cells. They are found in brightness, in two steps: cells that
        differ from what the first explains by more than `limit`, or a shift can make of them, have no part in the
        second."""
        ways = self._explain() if self._ways is None else self._ways
        left = cells - self.mean
        few, most = left[0, ::3, ::3].reshape(-1), limit[0, ::3, ::3].reshape(-1) + self._few_edges
        start = few - few.mean()
        for _ in range(2):
            weighed = self._few * (np.abs(start) < most)
            found = np.linalg.solve(weighed @ self._few.T + STEADY, weighed @ few)
            start = few - found @ self._few
        # not `@`: OpenBLAS shares it among threads, which then spin for 30 ms and take the processor from everybody
        left -= np.einsum("i,ij->j", found, ways).reshape(left.shape)
        offset, gain, right, down = map(float, found)
        return left, max(abs(gain) / GAIN, abs(offset) / OFFSET), math.hypot(right, down)

    def _explain(self) -> NDArray[np.float32]:
        """What may explain a difference, at every cell: an offset (of brightness alone), a gain, and a shift along
        either axis."""
        mean = self.mean
        ways = np.zeros((4, *mean.shape), np.float32)
        ways[0, 0], ways[1, 0], ways[1, 1] = 1, mean[0] - mean[0].mean(), mean[1]
        np.subtract(mean[:, :, 2:], mean[:, :, :-2], out=ways[2, :, :, 1:-1])
        np.subtract(mean[:, 2:], mean[:, :-2], out=ways[3, :, 1:-1])
        ways[2:] *= 0.5
        self.edges = np.abs(ways[2]) + np.abs(ways[3])
        self.edges[1] = 2 * (self.edges[0] + self.edges[1])  # red and blue come from different pixels
        self._few = np.ascontiguousarray(ways[:, 0, ::3, ::3]).reshape(4, -1)
        self._few_edges = self.edges[0, ::3, ::3].reshape(-1)
        self._ways = ways.reshape(4, -1)
        return self._ways

    def follow(self, residual: NDArray[np.float32]) -> None:
        """Takes a still frame into the mean."""
        self.mean += residual * np.float32(1 / self.frames if self.frames <= SETTLED else EVERY / SLOW)
        if self.frames == SETTLED:
            self._ways = None


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A frame as the gate saw it: its cells, whether it is `still` in comparison with `against` (None: nothing was sent
    before), and whether it is sent for its own sake rather than as the tail of a movement."""

    cells: NDArray[np.float32]
    size: tuple[int, int]
    time_s: float
    still: bool
    begins: bool
    against: Reference | None


class MotionGate:
    """The gate of one camera. `look` is for the reading thread; `sent` and `forget` may be called from another one.

    `tail` is how many frames more are sent after each movement: a tracker whose detector looks at every fourth frame
    needs three. `moving` tells of the latest frame, `still_s` how many seconds before it something moved the last time.
    `motion` may be replaced at any time.
    """

    def __init__(self, motion: Motion, tail: int = 0) -> None:
        self.motion, self.tail, self.moving = motion, tail, True
        self.still_s, self._moved_s = 0.0, 0.0
        self._contrast = CONTRAST * 4 ** (1 - 2 * motion.sensitivity)
        self._reference: Reference | None = None
        self._noise = np.zeros((2, 0, 0), np.float32)
        self._limit: NDArray[np.float32] | None = None
        self._watched, self._masked = np.zeros((0, 0), bool), motion.regions

    def look(self, rgb: NDArray[np.uint8], time_s: float) -> View:
        """Compares uint8 [H,W,3], captured `time_s` seconds after the camera's start."""
        size, cells, reference = (rgb.shape[0], rgb.shape[1]), cells_of(rgb), self._reference
        if self._noise.shape[1:] != cells.shape[1:]:
            self._noise, self._limit = np.zeros((2, 0, 0), np.float32), None
        if self._watched.shape != cells.shape[1:] or self._masked is not self.motion.regions:
            self._masked = self.motion.regions
            self._watched = watched(self._masked, *cells.shape[1:])
        moved = reference is None or reference.size != size or self._moved(reference, cells)
        self.moving = moved
        if moved:
            self._moved_s = time_s
        self.still_s = time_s - self._moved_s
        begins = moved or reference is None or not 0 <= time_s - reference.time_s < self.motion.refresh_s
        still = not begins and reference is not None and not reference.tail
        return View(cells, size, time_s, still, begins, reference)

    def current(self, view: View) -> bool:
        """Whether no other frame was sent since that one was looked at."""
        return view.against is self._reference

    def sent(self, view: View) -> None:
        """The frame is on its way to the server: later ones are compared with it."""
        old = self._reference
        tail = self.tail if view.begins or old is None else max(old.tail - 1, 0)
        self._reference = Reference(view.cells, view.size, view.time_s, tail)

    def forget(self) -> None:
        """There is no answer that could stand: the next frame is to be sent."""
        self._reference = None

    def _moved(self, reference: Reference, cells: NDArray[np.float32]) -> bool:
        if self._limit is None:
            self._limit = self._limits(cells, reference)
        residual, light, shift = reference.residual(cells, self._limit)
        reference.frames += 1
        size = np.abs(residual)
        # one frame has its own noise, the mean of many has none; edges that are shifted leave something
        limit = reference.edges * np.float32(min(EDGES * shift, MOST_EDGE))
        limit += self._limit if reference.frames > SETTLED else self._limit * np.float32(FRESH)
        changed = size > limit
        moved = light > 1 or shift > SHIFT or self._together((changed[0] | changed[1]) & self._watched)
        learn = reference.frames % EVERY == 0
        if not moved and (learn or reference.frames <= SETTLED):
            reference.follow(np.where(changed, np.float32(0), residual))
        if learn or moved:  # in a moving frame what changed is no noise, in a still one it is what leaves do
            seen = np.minimum(size, MOST_NOISE) - self._noise
            seen[changed & moved] = 0
            self._noise += seen * np.float32((EVERY if learn else 1) / LEARNING)
            self._limit = None
        return moved

    def _limits(self, cells: NDArray[np.float32], reference: Reference) -> NDArray[np.float32]:
        """By how many grey levels each cell has to change, [2, rows, columns]."""
        if not self._noise.size:  # the first comparison: half of the cells have no more than this
            some = np.median(np.abs(cells - reference.mean), axis=(1, 2), keepdims=True) / 0.845
            self._noise = np.clip(some, FIRST_NOISE, MOST_NOISE) + np.zeros_like(cells)
        limit = self._noise * np.float32(NOISES)
        limit[0] += self._contrast
        limit[1] += 1.5 * self._contrast  # of colour there are fewer pixels, and cameras guess at it
        return limit

    def _together(self, changed: NDArray[np.bool_]) -> bool:
        """Whether enough changed cells lie in one square of twice their side."""
        # an area that just counts covers some of its cells only in part
        enough = max(2, round(0.6 * self.motion.smallest * changed.size))
        if np.count_nonzero(changed) < enough:
            return False
        side = min(math.ceil(2 * math.sqrt(enough)), *changed.shape)
        sums = np.zeros((changed.shape[0] + 1, changed.shape[1] + 1), np.int32)
        np.cumsum(np.cumsum(changed, 0, dtype=np.int32), 1, out=sums[1:, 1:])
        within = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        return bool(within.max() >= enough)


def cells_of(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness, and red less blue, of the grid's cells: float32 [2, rows, columns], from `ROWS` x `COLUMNS` pixels of
    each."""
    height, width = rgb.shape[:2]
    side = max(1, round(math.sqrt(height * width / CELLS)))
    side = min(side, height, width)
    rows, columns = height // side, width // side
    pixels = np.empty((ROWS * COLUMNS, rows, columns), np.float32)
    for i in range(ROWS):
        line = rgb[int((i + 0.5) * side / ROWS) : rows * side : side]
        for k in range(COLUMNS):
            start = int((k + 0.5) * side / COLUMNS)
            pixels[i * COLUMNS + k] = line[:, start : columns * side : side, CHANNELS[i * COLUMNS + k]]
    cells = np.empty((2, rows, columns), np.float32)
    np.multiply(pixels.sum(0), 1 / len(pixels), out=cells[0])
    np.subtract(pixels[RED].mean(0), pixels[BLUE].mean(0), out=cells[1])
    return cells


def watched(regions: tuple[tuple[tuple[float, float], ...], ...], rows: int, columns: int) -> NDArray[np.bool_]:
    """bool [rows, columns]: the cells that lie in none of the regions."""
    grid = Image.new("1", (columns, rows), 1)
    for corners in regions:
        ImageDraw.Draw(grid).polygon([(x * columns - 0.5, y * rows - 0.5) for x, y in corners], fill=0)
    return np.array(grid, bool)
