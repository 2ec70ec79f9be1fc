"""Requests as arrays: what is understood, and which sentence answers what is not."""

import base64

import numpy as np
import pytest

from ensemble.request import RequestError, parse

FRAME = np.zeros((1, 4, 6, 3), np.uint8)


def text(*names):
    return np.array([[n.encode() if isinstance(n, str) else n for n in names]], dtype=object)


def arrays(**changes):
    return {"frame": FRAME, "classes": text("dog"), **changes}


def test_defaults():
    request = parse(arrays(), max_boxes=8)
    assert request.classes == ("dog",)
    assert (request.threshold, request.mask_format, request.max_detections) == (0.5, "none", 100)
    assert request.image is None
    assert request.frame is not None
    assert request.frame.shape == (4, 6, 3)


def test_empty_arrays_mean_the_default():
    empty = {
        "image": text(b""),
        "boxes": np.zeros((1, 0, 4), np.float32),
        "box_labels": np.zeros((1, 0), np.int32),
        "box_classes": np.zeros((1, 0), np.int32),
        "threshold": np.zeros((1, 0), np.float32),
        "mask_format": text(b""),
    }
    assert parse(arrays(**empty), 8).exemplars == {}
    assert parse(arrays(**empty), 8).threshold == 0.5


def test_image_instead_of_frame():
    request = parse({"image": text(b"\xff\xd8"), "frame": np.zeros((1, 0, 0, 3), np.uint8), "classes": text("dog")}, 8)
    assert request.image == b"\xff\xd8"
    assert request.frame is None


def test_boxes_become_cxcywh_per_class():
    boxes = np.array([[[0.1, 0.2, 0.3, 0.6], [0.5, 0.5, 1.0, 1.0], [0, 0, 0.5, 0.5]]], np.float32)
    request = parse(
        arrays(
            classes=text("dog", "cat"), boxes=boxes, box_labels=np.array([[1, 0, 1]]), box_classes=np.array([[1, 1, 0]])
        ),
        8,
    )
    assert set(request.exemplars) == {0, 1}
    np.testing.assert_allclose(request.exemplars[1].boxes, [[0.2, 0.4, 0.2, 0.4], [0.75, 0.75, 0.5, 0.5]], rtol=1e-6)
    assert request.exemplars[1].labels.tolist() == [1, 0]


def test_boxes_are_cut_at_the_edges_of_the_frame():
    boxes = np.array([[[-0.25, 0.5, 0.5, 1.25]]], np.float32)
    (exemplars,) = parse(arrays(boxes=boxes), 8).exemplars.values()
    assert exemplars.boxes.tolist() == [[0.25, 0.75, 0.5, 0.5]]
    assert exemplars.boxes.dtype == np.float32


def test_base64_text_of_a_picture_is_the_picture():
    file = b"\xff\xd8\xff" + bytes(range(200))
    request = parse({"image": text(base64.b64encode(file)), "classes": text("dog")}, 8)
    assert request.image == file


def test_boxes_without_text_use_the_visual_prompt():
    request = parse({"frame": FRAME, "boxes": np.array([[[0, 0, 0.5, 0.5]]], np.float32)}, 8)
    assert request.classes == ("visual",)
    assert request.exemplars[0].labels.tolist() == [1]


BOX = np.array([[[0.1, 0.1, 0.2, 0.2]]], np.float32)
CASES = {
    "no classes": ({"classes": text()}, "classes: expected at least one class name"),
    "too many classes": ({"classes": text(*["a"] * 1000)}, "classes: at most 100 names a request, got 1000"),
    "empty string": ({"classes": text("dog", "")}, r"classes\[1\]: expected a word or phrase, got an empty string"),
    "blanks": ({"classes": text("   ")}, r"classes\[0\]: expected a word"),
    "10 kB of text": ({"classes": text("x" * 10_000)}, r"classes\[0\]: at most 300 characters, got 10000"),
    "not UTF-8": ({"classes": text(b"\xff\xfe")}, r"classes\[0\]: expected UTF-8"),
    "text for a picture": (
        {"frame": np.zeros((1, 0, 0, 3), np.uint8), "image": text("frame.jpg")},
        "image: expected a JPEG, PNG or WebP file or the base64 text of one, got text that starts with 'frame.jpg'",
    ),
    "no picture": ({"frame": np.zeros((1, 0, 0, 3), np.uint8)}, "expected exactly one of image .* got neither"),
    "two pictures": ({"image": text(b"x")}, "expected exactly one of image .* got both"),
    "grey frame": (
        {"frame": np.zeros((1, 4, 4), np.uint8)},
        r"frame: expected uint8 \[height, width, 3\], got uint8 \[4, 4\]",
    ),
    "float frame": ({"frame": np.zeros((1, 4, 4, 3), np.float32)}, "frame: expected uint8"),
    "huge frame": (
        {"frame": np.broadcast_to(np.uint8(0), (1, 40_000, 40_000, 3))},
        "frame: at most 50,000,000 pixels, got 40000x40000",
    ),
    "second box NaN": (
        {"boxes": np.array([[[0.1, 0.1, 0.2, 0.2], [np.nan] * 4]], np.float32)},
        r"boxes\[1\]: expected x0 < x1",
    ),
    "box in pixels": ({"boxes": np.array([[[10, 10, 20, 20]]], np.float32)}, "fractions of the frame"),
    "box of two numbers": ({"boxes": np.zeros((1, 1, 2), np.float32)}, r"boxes: expected \[count, 4\]"),
    "label count": (
        {"boxes": BOX, "box_labels": np.array([[1, 0]])},
        r"box_labels: expected one value per box \(1\), got 2",
    ),
    "label value": ({"boxes": BOX, "box_labels": np.array([[7]])}, r"box_labels: expected 1 .* got \[7\]"),
    "class index": (
        {"boxes": BOX, "box_classes": np.array([[3]])},
        r"box_classes: expected indices into classes \(0 to 0\)",
    ),
    "too many boxes": ({"boxes": np.repeat(BOX, 9, axis=1)}, "boxes: at most 8 a class, got 9"),
    "threshold": ({"threshold": np.array([[1.5]], np.float32)}, "threshold: expected 0 to 1, got 1.5"),
    "NaN threshold": ({"threshold": np.array([[np.nan]], np.float32)}, "threshold: expected 0 to 1, got nan"),
    "mask format": ({"mask_format": text("png")}, "mask_format: expected one of none, bits, rle, got 'png'"),
    "limit": ({"max_detections": np.array([[0]], np.int32)}, "max_detections: expected 1 to 10000, got 0"),
    "two frames": (
        {"frame": np.zeros((2, 4, 4, 3), np.uint8)},
        "frame: the leading dimension is the batch and must be 1",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), CASES.values(), ids=CASES)
def test_refusals(changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        parse(arrays(**changes), max_boxes=8)
