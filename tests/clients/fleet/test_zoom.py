"""The crops of the second pass, and the merge of both passes."""

import numpy as np
import pytest

from clients.fleet.zoom import Zoom, crop, iou, look_closer, merge, regions

HIGH = Zoom("high", margin=2.0, least=0.2, largest=0.3)


def found(detections, *things, **other):
    """Detections of (class id, score, box)."""
    return detections(
        0,
        boxes=np.array([box for _, _, box in things], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in things], np.float32),
        class_ids=np.array([c for c, _, _ in things], np.int32),
        **other,
    )


REGIONS = {
    "around a candidate": ([(1, 0.2, (0.4, 0.4, 0.6, 0.5))], HIGH, [(0.3, 0.25, 0.7, 0.65)]),
    "moved into the frame": ([(1, 0.2, (0.0, 0.9, 0.1, 1.0))], HIGH, [(0.0, 0.8, 0.2, 1.0)]),
    "not smaller than the minimum": ([(1, 0.2, (0.49, 0.49, 0.51, 0.51))], HIGH, [(0.4, 0.4, 0.6, 0.6)]),
    "none for large objects": ([(1, 0.9, (0.1, 0.1, 0.9, 0.9))], HIGH, []),
    "none for a low score": ([(1, 0.1, (0.4, 0.4, 0.5, 0.5))], HIGH, []),
    "neighbours share one": (
        [(1, 0.9, (0.4, 0.4, 0.5, 0.5)), (0, 0.8, (0.42, 0.42, 0.48, 0.48))],
        HIGH,
        [(0.35, 0.35, 0.55, 0.55)],
    ),
    "chosen classes": ([(0, 0.9, (0.4, 0.4, 0.5, 0.5))], Zoom("high", classes=("red circle",)), []),
    "not too many": (
        [(1, 0.9, (0.1, 0.1, 0.2, 0.2)), (1, 0.8, (0.8, 0.8, 0.9, 0.9))],
        Zoom("high", crops=1, least=0.2),
        [(0.05, 0.05, 0.25, 0.25)],
    ),
}


@pytest.mark.parametrize("case", REGIONS)
def test_regions(case, detections):
    things, zoom, expected = REGIONS[case]
    assert np.array(regions(found(detections, *things), zoom)) == pytest.approx(np.array(expected), abs=1e-6)


def test_crops_have_whole_pixels():
    rgb = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    pixels, region = crop(rgb, (0.26, 0.31, 0.5, 0.69))
    assert np.array_equal(pixels, rgb[3:7, 5:10])
    assert region == (0.25, 0.3, 0.5, 0.7)


def test_iou():
    assert iou(np.array([0, 0, 2, 2.0]), np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6.0]])) == pytest.approx(
        [1, 1 / 3, 0]
    )


QUARTER = (0.5, 0.5, 1.0, 1.0)


def test_the_second_pass_wins(detections):
    """One object found by both, one only by the first pass, one only by the second, one of another class at the same
    place."""
    first = found(
        detections, (1, 0.9, (0.6, 0.6, 0.7, 0.7)), (1, 0.8, (0.1, 0.1, 0.2, 0.2)), (0, 0.5, (0.6, 0.6, 0.7, 0.7))
    )
    second = found(detections, (1, 0.7, (0.22, 0.2, 0.4, 0.42)), (1, 0.6, (0.6, 0.6, 0.7, 0.7)))
    both = merge(first, [(second, QUARTER)])
    assert both.scores.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert both.labels == ("red circle", "red circle", "red circle", "blue square")
    assert both.boxes[1] == pytest.approx([0.61, 0.6, 0.7, 0.71])
    assert both.boxes[2] == pytest.approx([0.8, 0.8, 0.85, 0.85])
    assert both.stage_ms["total"] == first.stage_ms["total"] + second.stage_ms["total"]


def test_objects_that_a_crop_cuts_off_are_left_to_the_first_pass(detections):
    """The crop's left edge cuts one off; its lower edge is the frame's own and cuts off nothing."""
    second = found(detections, (1, 0.9, (0.0, 0.4, 0.2, 0.6)), (1, 0.8, (0.4, 0.8, 0.6, 1.0)))
    both = merge(found(detections), [(second, QUARTER)])
    assert both.scores.tolist() == pytest.approx([0.8])
    assert both.boxes[0] == pytest.approx([0.7, 0.9, 0.8, 1.0])


def test_masks_are_mapped_back_to_the_frame(detections):
    mask = np.zeros((1, 72, 72), bool)
    mask[0, 18:54, 18:54] = True  # the middle of the crop
    second = found(detections, (1, 0.9, (0.25, 0.25, 0.75, 0.75)), masks=mask)
    both = merge(found(detections), [(second, QUARTER)])
    expected = np.zeros((72, 72), bool)
    expected[45:63, 45:63] = True
    assert both.has_masks
    assert np.count_nonzero(both.masks[0] ^ expected) <= 4


async def test_all_crops_are_sent_at_once(detections):
    first = found(detections, (1, 0.4, (0.1, 0.1, 0.2, 0.2)), (1, 0.3, (0.7, 0.7, 0.8, 0.8)))
    asked = []

    async def ask(jpeg):
        asked.append(jpeg)
        return found(detections, (1, 0.9, (0.4, 0.4, 0.6, 0.6)))

    both = await look_closer(np.zeros((100, 200, 3), np.uint8), first, HIGH, ask)
    assert len(asked) == 2
    confirmed = both.above(0.5)  # the candidates are still among them
    assert (len(both), sorted(confirmed.boxes[:, 0].tolist())) == (4, pytest.approx([0.125, 0.725], abs=0.011))
    assert await look_closer(np.zeros((9, 9, 3), np.uint8), found(detections), HIGH, ask) is not None
    assert len(asked) == 2
