"""Masks, boxes and COCO records of `Detections`."""

import sys
import types

import numpy as np
import pytest
from pycocotools import mask as coco_mask


def rle_of(masks):
    return [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]


def test_bits_unpack_most_significant_first(detections):
    bits = np.zeros((1, 72, 72), bool)
    bits[0, 3, 0] = bits[0, 3, 71] = True
    found = detections(1, masks=bits)
    assert found.mask_bits[0, 3].tolist() == [0b1000_0000] + [0] * 7 + [0b0000_0001]
    assert np.array_equal(found.masks, bits)


def test_bits_of_a_width_that_is_not_a_multiple_of_eight(detections):
    masks = np.random.default_rng(0).random((2, 20, 20)) < 0.5  # 20 bits are 3 bytes with 4 unused bits
    assert np.array_equal(detections(2, masks=masks).masks, masks)


def test_bits_and_rle_are_the_same_masks(detections, masks):
    by_bits, by_rle = detections(masks=masks), detections(rle=rle_of(masks))
    assert np.array_equal(by_bits.masks, by_rle.masks)
    assert by_bits.rle == by_rle.rle
    assert [r["counts"] for r in by_bits.rle] == rle_of(masks)
    assert by_bits.rle[0]["size"] == [72, 72]


def test_masks_that_were_not_requested(detections):
    found = detections()
    assert not found.has_masks
    for ask in (lambda: found.masks, lambda: found.rle, lambda: found.masks_at(10, 10)):
        with pytest.raises(ValueError, match="mask_format"):
            ask()


@pytest.mark.parametrize("smooth", [False, True], ids=["nearest", "bilinear"])
def test_masks_scale_to_the_frame(detections, masks, smooth):
    scaled = detections(masks=masks).masks_at(360, 640, smooth=smooth)
    assert scaled.shape == (2, 360, 640)
    assert scaled.dtype == bool
    box = np.zeros((360, 640), bool)
    box[90:270, 160:320] = True  # a quarter to a half of the width, a quarter to three quarters of the height
    assert np.count_nonzero(scaled[0] ^ box) / box.sum() < 0.005
    assert scaled[1].mean() == pytest.approx(masks[1].mean(), rel=0.03)


def test_above_selects_all_fields(detections, masks):
    for found in (detections(masks=masks), detections(rle=rle_of(masks))):
        best = found.above(0.8)
        assert best.labels == ("red circle",)
        assert np.array_equal(best.masks, masks[:1])
        assert len(best.boxes) == 1
        none = found.above(0.95)
        assert len(none) == 0
        assert none.masks.shape == (0, 72, 72)
    assert len(detections().above(0.8)) == 1


def test_coco_records(detections, masks):
    first, second = detections(masks=masks).to_coco(image_id=9, category_ids={"red circle": 40, "blue square": 50})
    assert (first["image_id"], first["category_id"], second["category_id"]) == (9, 40, 50)
    assert first["bbox"] == [160, 90, 160, 180]
    assert first["score"] == pytest.approx(0.9)
    assert first["segmentation"]["size"] == [360, 640]
    assert coco_mask.area(first["segmentation"]) == pytest.approx(160 * 180, rel=0.01)
    assert "segmentation" not in detections().to_coco()[0]
    assert detections(0).to_coco() == []


def test_pycocotools_is_optional(detections, masks, monkeypatch):
    """Without it bits still become masks; only COCO's format needs it."""
    by_bits, by_rle = detections(masks=masks), detections(rle=rle_of(masks))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert by_bits.masks_at(360, 640).any()
    assert detections(0).rle == ()
    for convert in (lambda: by_bits.rle, lambda: by_bits.to_coco(), lambda: by_rle.masks):
        with pytest.raises(ImportError, match=r"sam3-triton\[coco\]"):
            convert()


def test_supervision_is_optional(detections, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        detections().to_supervision()


def test_supervision_gets_pixels(detections, masks, monkeypatch):
    """The package is not a dependency; its constructor's keywords are checked here, the package itself in the test
    below."""
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=lambda **given: given))
    given = detections(masks=masks).to_supervision()
    assert given["xyxy"][0].tolist() == [160, 90, 320, 270]
    assert given["mask"].shape == (2, 360, 640)
    assert given["data"]["class_name"].tolist() == ["red circle", "blue square"]


def test_supervision_itself(detections, masks):
    supervision = pytest.importorskip("supervision")
    found = detections(masks=masks).to_supervision()
    assert isinstance(found, supervision.Detections)
    assert len(found) == 2
