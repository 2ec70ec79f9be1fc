"""Drawing changes the pixels it should and no others."""

import numpy as np
import pytest

from clients.draw import INK_DARK, INK_LIGHT, annotate, colour_map, ink_on

GREY = np.full((360, 640, 3), 100, np.uint8)


def changed(picture):
    return (picture != GREY).any(axis=2)


def test_box_edge_and_nothing_else(detections):
    colours = {"red circle": (255, 0, 0), "blue square": (0, 0, 255)}
    touched = changed(annotate(GREY, detections(1), labels=False, colours=colours))
    inside = np.zeros((360, 640), bool)
    inside[89:272, 159:322] = True
    core = np.zeros((360, 640), bool)
    core[95:265, 165:315] = True
    assert touched[92, 160:320].any() or touched[90, 170]  # the edge is there
    assert not (touched & ~inside).any()
    assert not (touched & core).any()


def test_mask_is_tinted_within_its_outline(detections, masks):
    found = detections(masks=masks)
    touched = changed(annotate(GREY, found, labels=False))
    drawn = found.masks_at(360, 640).any(axis=0)
    assert touched[drawn].all()
    assert changed(annotate(GREY, found, labels=False, masks=False)).sum() < touched.sum()


def test_the_picture_given_is_left_alone(detections, masks):
    picture = GREY.copy()
    annotate(picture, detections(masks=masks))
    assert np.array_equal(picture, GREY)


def test_nothing_found_changes_nothing(detections):
    assert not changed(annotate(GREY, detections(0))).any()


@pytest.mark.parametrize("size", [(40, 60), (360, 640), (1080, 1920)], ids=str)
def test_tags_stay_inside_pictures_of_any_size(detections, size):
    """Boxes touch the top and the left edge; long names must be cut by neither an error nor the frame."""
    picture = np.zeros((*size, 3), np.uint8)
    assert annotate(picture, detections(3)).shape == picture.shape


def test_tags_of_one_place_do_not_cover_each_other(detections):
    same = np.array([[0.4, 0.4, 0.6, 0.6]] * 2, np.float32)
    colours = {"red circle": (255, 0, 0), "blue square": (0, 0, 255)}
    picture = annotate(GREY, detections(2, boxes=same), colours=colours)
    for colour in colours.values():
        assert (picture == colour).all(axis=2).sum() > 1500  # both tags are seen, not just one


def test_a_label_keeps_its_colour(detections):
    assert colour_map(["red circle"])["red circle"] == colour_map(["red circle", "dog"])["red circle"]
    many = [f"thing {i}" for i in range(9)]
    assert len(set(colour_map(many).values())) == 9
    assert len(colour_map([f"thing {i}" for i in range(60)])) == 60


def test_letters_can_be_read():
    assert ink_on((250, 240, 90)) == INK_DARK
    assert ink_on((40, 40, 200)) == INK_LIGHT
