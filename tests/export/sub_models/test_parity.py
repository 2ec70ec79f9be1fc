"""Every output of every ONNX file beside that of `Sam3Model.forward` itself, run once for each (image, class) pair."""

from __future__ import annotations

import pytest

from export.gate.detections import check_detections
from export.gate.reference import expected_outputs, scores
from export.gate.verify import check_parts, run_chain, strongest

LIMIT = 1e-4  # max|a-b| / max|b| of each output

CASES = [
    # resolution, images, pairs, boxes
    pytest.param(112, 1, 1, False, id="whole windows, one pair"),
    pytest.param(112, 1, 1, True, id="whole windows, one pair with a box"),
    pytest.param(112, 2, 5, True, id="whole windows, boxes of one, two and none"),
    pytest.param(112, 8, 16, False, id="whole windows, most images and pairs"),
    pytest.param(126, 1, 2, False, id="padded windows, odd patches, half bytes of mask"),
    pytest.param(126, 3, 16, True, id="padded windows, most pairs with boxes"),
    pytest.param(126, 8, 7, True, id="padded windows, more images than pairs"),
]


@pytest.mark.parametrize(("resolution", "images", "pairs", "boxes"), CASES)
def test_every_output_matches_sam3_model(exported, sample, truth, resolution, images, pairs, boxes):
    export, work = exported(resolution), sample(resolution, images, pairs, boxes)
    wanted = truth(resolution, images, pairs, boxes)
    checks = check_parts(export.runs, export.variant, work, wanted, strongest(scores(wanted), 5))
    assert {c.output for c in checks} == {
        *(
            "fpn_0",
            "fpn_1",
            "fpn_2",
            "text_features",
            "pred_logits",
            "pred_boxes",
            "presence_logits",
            "query_features",
            "memory",
        ),
        *("mask_logits", "mask_bits"),
        *(["geometry_features"] if boxes else []),
    }
    assert {c.output: c.relative for c in checks if c.relative > LIMIT and c.output != "mask_bits"} == {}
    assert next(c.relative for c in checks if c.output == "mask_bits") == 0


@pytest.mark.parametrize(("resolution", "images", "pairs", "boxes"), CASES[2:6])
def test_detections_of_the_chain_are_identical(exported, sample, truth, resolution, images, pairs, boxes):
    export, work = exported(resolution), sample(resolution, images, pairs, boxes)
    wanted = truth(resolution, images, pairs, boxes)
    score = scores(wanted)
    threshold = float(sorted(score.ravel())[-score.size // 4])  # random weights: take a quarter for detections
    picks = strongest(score, 20)
    chained = run_chain(export.runs, export.variant, work, picks)
    found = check_detections(chained, wanted, picks, threshold - 1e-9, margin=1e-6)
    assert found.expected >= score.size // 4
    assert (found.missing, found.unexpected) == (0, 0)
    assert found.box_iou > 0.999
    assert found.mask_iou > 0.99
    assert found.score_difference < 1e-4


def test_pairs_do_not_influence_each_other(exported, sample):
    """Sixteen pairs in one call give what each gives alone: the loop over classes may be cut into chunks anywhere."""
    export, work = exported(112), sample(112, 4, 16, True)
    picks = strongest(scores(expected_outputs(export.model, work)), 3)
    together = run_chain(export.runs, export.variant, work, picks)
    for n in (0, 7, 15):
        part = type(work)(
            work.pixel_values,
            work.input_ids,
            work.text_mask,
            *(getattr(work, name)[n : n + 1] for name in ("image_index", "prompt_index", "boxes", "box_labels")),
        )
        alone = run_chain(export.runs, export.variant, part, picks[n : n + 1])
        for name in ("pred_logits", "pred_boxes", "presence_logits", "mask_logits"):
            assert abs(alone[name] - together[name][n : n + 1]).max() <= 1e-4 * abs(together[name]).max(), name


def test_gate_passes_on_its_own_frames(exported):
    """`export_variant` ran the gate; its figures are in what it returned."""
    written = exported(126).written
    assert len(written) == 5
    assert max(w.relative_error for w in written) <= LIMIT
    assert min(w.cosine for w in written) > 0.999999
