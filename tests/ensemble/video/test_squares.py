import numpy as np
import pytest

from ensemble.video.squares import Smaller, boxes, resized


def packed(*masks):
    return np.packbits(np.stack(masks).astype(np.uint8), axis=-1)


def square(size, y0, x0, y1, x1):
    mask = np.zeros((size, size), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_boxes_are_around_the_masks():
    found = boxes(packed(square(40, 4, 8, 12, 24), square(40, 0, 0, 40, 40), square(40, 39, 0, 40, 1)), 40)
    expected = [[0.2, 0.1, 0.6, 0.3], [0, 0, 1, 1], [0, 0.975, 0.025, 1]]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


def test_no_masks_have_no_boxes():
    assert boxes(np.zeros((0, 40, 5), np.uint8), 40).shape == (0, 4)


def test_masks_of_another_size_cover_the_same_part_of_the_frame():
    small = resized(packed(square(72, 18, 36, 54, 72)), 72, 40)
    assert small.shape == (1, 40, 5)
    assert np.unpackbits(small, axis=-1, count=40)[0].astype(bool).tolist() == square(40, 10, 20, 30, 40).tolist()


def test_masks_of_the_right_size_are_left_alone():
    bits = packed(square(40, 1, 2, 3, 4))
    assert resized(bits, 40, 40) is bits


def test_frames_are_scaled_as_pillow_does():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 56, 56), np.uint8)
    small = Smaller(28, None)(frames)
    assert (small.shape, small.dtype) == ((2, 3, 28, 28), np.uint8)
    means = frames.reshape(2, 3, 28, 2, 28, 2).mean((3, 5))
    assert np.abs(small - means).mean() < 40
    assert np.corrcoef(small.ravel(), means.ravel())[0, 1] > 0.7
