"""Exemplar boxes: what the server itself returns is taken, what is no box of a frame is refused with a sentence."""

import math

import numpy as np
import pytest

from ensemble.boxes import REACH, inside_frame

TAKEN = {
    "inside": ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
    "the whole frame": ((0, 0, 1, 1), (0, 0, 1, 1)),
    "a hair over the left edge": ((-0.001, 0.2, 0.3, 0.4), (0, 0.2, 0.3, 0.4)),
    "over every edge": ((-0.1, -0.2, 1.3, 1.01), (0, 0, 1, 1)),
    "as far as a detection can": ((-REACH, 0, 1 + REACH, 1), (0, 0, 1, 1)),
}
REFUSED = {
    "in pixels": (10, 10, 200, 100),
    "in pixels, from the corner": (0, 0, 640, 480),
    "farther than a detection can": (-0.6, 0, 0.5, 0.5),
    "NaN": (math.nan, 0.1, 0.2, 0.3),
    "infinite": (0.1, 0.1, math.inf, 0.3),
    "minus infinite": (-math.inf, 0.1, 0.2, 0.3),
    "inverted": (0.5, 0.1, 0.2, 0.3),
    "upside down": (0.1, 0.5, 0.2, 0.3),
    "no width": (0.5, 0.1, 0.5, 0.3),
    "no height": (0.1, 0.3, 0.5, 0.3),
    "outside": (1.1, 0.1, 1.4, 0.3),
    "along the edge": (-0.2, 0.1, 0.0, 0.3),
}


@pytest.mark.parametrize(("box", "cut"), TAKEN.values(), ids=TAKEN)
def test_what_is_taken(box, cut):
    assert inside_frame(box) == cut


@pytest.mark.parametrize("box", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(box):
    with pytest.raises(ValueError, match="expected x0 < x1 and y0 < y1 in fractions of the frame"):
        inside_frame(box)


def test_every_box_that_the_decoder_can_return_is_taken():
    """Its centre and its sides are sigmoids: 0 to 1 of the frame, in whatever precision."""
    for dtype in (np.float32, np.float16):
        centre, side = np.meshgrid(np.linspace(0, 1, 33, dtype=dtype), np.linspace(1 / 32, 1, 32, dtype=dtype))
        low, high = centre - side / 2, centre + side / 2
        for x0, x1 in zip(low.ravel().tolist(), high.ravel().tolist(), strict=True):
            left, _, right, _ = inside_frame((x0, x0, x1, x1))
            assert 0 <= left < right <= 1
