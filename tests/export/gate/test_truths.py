"""Truths for other machines: made once, made again when what they depend on changes, and true of every engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemble.engines.onnxruntime import OnnxSubModel
from ensemble.gate import truths
from ensemble.gate.limits import limits_of
from ensemble.gate.measure import failures, measure
from ensemble.spec import Variant
from export.gate.frames import drawn_frames
from export.gate.truths import store_truths, truths_hash
from export.sub_models.parts import PARTS


@pytest.fixture(scope="module")
def variant(source) -> Variant:
    return Variant(112, source.record.num_queries, "fp32", max_pairs=16, checkpoint=source.record)


def test_they_are_made_again_only_when_they_have_to_be(source, variant, tmp_path):
    frames = drawn_frames(2, 112)
    assert store_truths(source, variant, frames, tmp_path)
    assert not store_truths(source, variant, frames, tmp_path), "they are there"
    assert not store_truths(source, replace(variant, precision="fp16"), frames, tmp_path), "and for every precision"
    assert store_truths(source, variant, frames, tmp_path, force=True)
    assert store_truths(source, variant, frames[::-1], tmp_path)
    kept = truths_hash(source, variant, frames)
    assert truths_hash(source, replace(variant, max_boxes=4), frames) != kept
    (tmp_path / truths.FILE).write_bytes(b"PK\3\4")
    assert store_truths(source, variant, frames[::-1], tmp_path), "a damaged file is no truth"


def test_an_export_agrees_with_them_and_limits_of_one_frame_and_one_pair_do_too(exported):
    """Padded windows (126) and the record's own limits; each sub-model by itself."""
    made = exported(126)
    read = truths.read(made.root / made.variant.front_name / truths.FILE)
    for part in PARTS:
        model = getattr(made.variant, part)
        limits = limits_of(made.variant, part)
        run = OnnxSubModel(made.root / model.name / "1" / "model.onnx")
        checks = measure(run, part, model.name, read, limits)
        assert {check.output for check in checks} == {tensor.name for tensor in model.outputs}
        assert not failures(checks, limits)


@pytest.mark.parametrize("limits", [{"max_batch": 1}, {"max_pairs": 1}, {"max_boxes": 1, "max_picks": 1}])
def test_they_fit_what_a_variant_takes(source, variant, tmp_path, limits):
    small = replace(variant, **limits)
    store_truths(source, small, drawn_frames(2, 112), tmp_path)
    arrays = truths.read(tmp_path / truths.FILE).arrays
    assert len(arrays["pixel_values"]) <= small.max_batch
    assert len(arrays["text/image_index"]) <= small.max_pairs
    assert arrays["boxes/boxes"].shape[1] == small.max_boxes
    assert arrays["boxes/query_index"].shape[1] <= small.max_picks
    assert all(np.isfinite(array).all() for name, array in arrays.items() if array.dtype.kind == "f")
