"""Drawing changes the intended pixels and no others."""

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


def test_the_given_image_is_not_changed(detections, masks):
    picture = GREY.copy()
    annotate(picture, detections(masks=masks))
    assert np.array_equal(picture, GREY)


def test_nothing_found_changes_nothing(detections):
    assert not changed(annotate(GREY, detections(0))).any()


@pytest.mark.parametrize("size", [(40, 60), (360, 640), (1080, 1920)], ids=str)
def test_tags_stay_inside_images_of_any_size(detections, size):
    """Boxes touch the top and the left edge; long names cause no error and are not cut off."""
    picture = np.zeros((*size, 3), np.uint8)
    assert annotate(picture, detections(3)).shape == picture.shape


@pytest.mark.parametrize(
    "box", [(0.4, 0.4, 0.6, 0.6), (0.0, 0.0, 0.1, 0.1), (0.9, 0.9, 1.0, 1.0)], ids=["middle", "corner", "other corner"]
)
def test_tags_in_one_place_do_not_cover_each_other(detections, box):
    """Three tags cover as many pixels as the same three do far from each other."""
    ids = np.array([0, 1, 0], np.int32)
    colours = {"red circle": (255, 0, 0), "blue square": (0, 0, 255)}

    def tag_pixels(boxes):
        found = detections(3, boxes=np.array(boxes, np.float32), class_ids=ids)
        with_tags, without = (annotate(GREY, found, colours=colours, labels=labels) for labels in (True, False))
        return (with_tags != without).any(axis=2).sum()

    apart = tag_pixels([(0.4, y, 0.6, y + 0.1) for y in (0.2, 0.5, 0.8)])
    assert tag_pixels([box] * 3) > 0.9 * apart  # a tag on a box edge of its own colour changes nothing there


def test_a_label_keeps_its_colour(detections):
    assert colour_map(["red circle"])["red circle"] == colour_map(["red circle", "dog"])["red circle"]
    many = [f"thing {i}" for i in range(9)]
    assert len(set(colour_map(many).values())) == 9
    assert len(colour_map([f"thing {i}" for i in range(60)])) == 60


def test_text_is_legible():
    assert ink_on((250, 240, 90)) == INK_DARK
    assert ink_on((40, 40, 200)) == INK_LIGHT


def test_tracks_are_drawn(detections):
    plain = annotate(GREY, detections())
    assert np.array_equal(annotate(GREY, detections(), tracks=(-1, -1)), plain)
    assert not np.array_equal(annotate(GREY, detections(), tracks=(7, -1)), plain)
