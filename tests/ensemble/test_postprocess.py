"""Scores, choice of queries and mask packing on known values."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ensemble.postprocess import Detections, best_first, scores, select, to_rle, unpack


def test_score_is_the_product_of_two_probabilities():
    got = scores(np.array([[0.0, 2.0, -200.0]]), np.array([[1.0]]))
    np.testing.assert_allclose(got, [[0.5 * 0.7310586, 0.8807971 * 0.7310586, 0.0]], rtol=1e-5)
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "threshold", "limit", "expected"),
    [
        ([0.2, 0.9, 0.6], 0.5, 10, [1, 2]),
        ([0.2, 0.9, 0.6], 0.5, 1, [1]),
        ([0.5, 0.5], 0.5, 10, []),  # strictly above, as transformers
        ([0.7, 0.7, 0.8], 0.5, 10, [2, 0, 1]),  # ties keep their order
        ([np.nan, 0.9], 0.5, 10, [1]),
        ([], 0.5, 10, []),
    ],
)
def test_select(values, threshold, limit, expected):
    assert select(np.array(values, np.float32), threshold, limit).tolist() == expected


@pytest.mark.parametrize("size", [72, 60, 4])
def test_unpacked_masks_are_the_packed_ones(size):
    masks = np.random.default_rng(0).random((3, size, size)) > 0.5
    bits = np.packbits(masks, axis=-1)
    assert bits.shape == (3, size, -(-size // 8))
    np.testing.assert_array_equal(unpack(bits, size), masks)
    decoded = coco_mask.decode([{"size": [size, size], "counts": counts} for counts in to_rle(bits, size)])
    np.testing.assert_array_equal(decoded.transpose(2, 0, 1).astype(bool), masks)


def test_no_masks_no_rle():
    assert to_rle(np.zeros((0, 8, 1), np.uint8), 8) == []


def part(class_id, values, fill):
    count = len(values)
    bits = np.full((count, 4, 1), fill, np.uint8)
    return Detections(
        np.full((count, 4), fill, np.float32),
        np.array(values, np.float32),
        np.full(count, class_id, np.int32),
        np.zeros(2),
        bits,
    )


def test_best_first_over_the_classes_of_a_frame():
    found = best_first(
        [part(0, [0.6, 0.5], 1), part(1, [0.9, 0.6], 2)], np.array([0.7, 0.9]), 3, np.zeros((0, 4, 1), np.uint8)
    )
    np.testing.assert_allclose(found.scores, [0.9, 0.6, 0.6])
    assert found.class_ids.tolist() == [1, 0, 1]
    assert found.mask_bits[:, 0, 0].tolist() == [2, 1, 2]


def test_nothing_found_keeps_the_shapes():
    found = best_first([], np.array([0.1], np.float32), 3, np.zeros((0, 72, 9), np.uint8))
    assert (found.boxes.shape, found.scores.shape, found.class_ids.dtype, found.mask_bits.shape) == (
        (0, 4),
        (0,),
        np.int32,
        (0, 72, 9),
    )
