"""Detections of two runs: how far apart boxes may be and still count as equal, and what random weights are held to."""

from __future__ import annotations

import numpy as np
import pytest

from export.gate.detections import check_detections
from export.gate.frames import drawn_frames, gate_samples
from export.gate.reference import expected_outputs
from export.gate.verify import verify

SIDE = 8 / 1008  # of the reference's box, eight pixels of a frame at 1008


@pytest.mark.parametrize(
    ("shift", "margin", "same"),
    [(0.2 / 1008, 0.0, False), (0.2 / 1008, 0.25 / 1008, True), (0.3 / 1008, 0.25 / 1008, False)],
    ids=["no margin", "within the margin", "beyond it"],
)
def test_a_small_box_may_be_a_fraction_of_a_pixel_off(shift: float, margin: float, same: bool) -> None:
    box = np.array([0.5, 0.5, 0.5 + SIDE, 0.5 + SIDE])
    shared = {
        "pred_logits": np.array([[4.0]]),
        "presence_logits": np.array([[4.0]]),
        "mask_logits": np.ones((1, 1, 4, 4), np.float32),
    }
    found, truth = ({**shared, "pred_boxes": b[None, None]} for b in (box + np.array([shift, 0, 0, 0]), box))
    overlap = check_detections(found, truth, np.array([[0]]), 0.5, margin=0.0, box_margin=margin).box_iou
    assert overlap == (1.0 if same else pytest.approx(1 - shift / SIDE))


def test_random_weights_fail_the_gate_by_their_outputs_and_not_by_their_detections(exported, source):
    export = exported(112)
    samples = gate_samples(drawn_frames(1, 112), source.tokenizer, export.variant)
    truths = [expected_outputs(export.model, sample) for sample in samples]
    decode = export.runs["decoder"]
    runs = {**export.runs, "decoder": lambda feed: {**decode(feed), "pred_boxes": 0.5 * decode(feed)["pred_boxes"]}}
    strict, lenient = (verify(runs, export.variant, samples, truths, detects=detects) for detects in (True, False))
    assert strict.detections == lenient.detections
    assert [f for f in strict.failures if "box IoU" in f]
    assert [f for f in lenient.failures if "pred_boxes" in f]
    assert not [f for f in lenient.failures if f.startswith("detections")]
