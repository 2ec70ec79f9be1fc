"""The gate finds what is broken and names it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ensemble.gate.limits import LIMITS
from ensemble.spec import Variant
from export.engines.onnx import check_graph
from export.engines.onnxruntime import onnx_session
from export.engines.registry import ready
from export.gate.detections import DetectionCheck, box_iou, check_detections, mask_iou
from export.gate.frames import drawn_frames, gate_samples
from export.gate.locate import first_layer_off
from export.gate.reference import expected_outputs
from export.gate.verify import GateError, OutputCheck, verify


def perturb(path: Path, initializer: str, factor: float) -> None:
    """Scales one weight of the file: the largest element of the first initializer whose name contains `initializer`."""
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if initializer in t.name)
    values = numpy_helper.to_array(tensor).copy()
    values.ravel()[np.abs(values).argmax()] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(path))


@pytest.fixture(scope="module")
def of_one_frame(exported, source):
    """The gate's samples of one frame at 112, and what `Sam3Model` answers to each."""
    export = exported(112)
    samples = gate_samples(drawn_frames(1, 112), source.tokenizer, export.variant)
    return samples, [expected_outputs(export.model, s) for s in samples]


@pytest.mark.parametrize(
    ("part", "initializer", "outputs"),
    [
        pytest.param("vision_encoder", "levels.1.", {"fpn_1"}, id="one pyramid level"),
        pytest.param("text_encoder", "projection.bias", {"text_features"}, id="text projection"),
        pytest.param("geometry_encoder", "class_token", {"geometry_features"}, id="class token"),
        pytest.param("decoder", "presence_head.layer3.bias", {"presence_logits"}, id="presence head"),
        pytest.param("decoder", "scoring.text_proj.bias", {"pred_logits"}, id="scoring"),
        pytest.param("mask_head", "embedder.layers.2.bias", {"mask_logits", "mask_bits"}, id="mask embedder"),
    ],
)
def test_a_perturbed_weight_is_caught_and_its_output_named(
    exported, of_one_frame, tmp_path, part, initializer, outputs
):
    export = exported(112)
    model = getattr(export.variant, part)
    broken = tmp_path / "model.onnx"
    shutil.copy(export.root / model.name / "1" / "model.onnx", broken)
    perturb(broken, initializer, 1.5)
    report = verify({**export.runs, part: onnx_session(broken)}, export.variant, *of_one_frame)
    failed = {c.output for c in report.outputs if c.failure(LIMITS["fp32"])}
    assert failed
    assert failed <= outputs
    with pytest.raises(GateError, match=rf"{model.name}: ({'|'.join(outputs)}) has .* expected at"):
        report.raise_for_failures()


def test_artifacts_are_asked_for_no_more_than_their_records_allow(exported, source):
    """A plan for one frame and one pair refuses two."""
    export = exported(112)
    variant = replace(export.variant, max_batch=1, max_pairs=1)
    samples = gate_samples(drawn_frames(2, 112), source.tokenizer, variant)
    assert len(samples[0].input_ids) > 1, "two prompts for one pair"
    asked = []

    def held_to(part, run):
        def call(feed):
            for tensor in getattr(variant, part).inputs:
                for i, axis in tensor.axes.items():
                    assert axis.minimum <= feed[tensor.name].shape[i] <= axis.maximum, (part, tensor.name)
            asked.append(part)
            return run(feed)

        return call

    runs = {part: held_to(part, run) for part, run in export.runs.items()}
    report = verify(runs, variant, samples, [expected_outputs(export.model, s) for s in samples])
    report.raise_for_failures()
    assert set(asked) == set(export.runs)


def test_a_broken_artifact_never_enters_and_what_was_not_at_fault_is_not_built_again(
    exported, export_fresh, tmp_path, monkeypatch
):
    import export.variant as exporting

    good = exported(112)
    root = tmp_path / "repository"
    shutil.copytree(good.root, root)
    decoder, text = good.variant.decoder.name, good.variant.text_encoder.name
    before = (root / decoder / "1" / "model.onnx").read_bytes()
    for name in (decoder, text):
        (root / name / "manifest.json").unlink()  # so that it is built again
    made = ready("onnxruntime")
    factor, built = 3.0, []

    def build(module, model, variant, path):
        built.append(model.name)
        shutil.copy(good.root / model.name / "1" / "model.onnx", path)  # what tracing would give again
        if model.part == "decoder":
            perturb(path, "box_head.layer3.bias", factor)
        return {}

    monkeypatch.setattr(exporting, "ready", lambda name, tensorrt, precision: replace(made, build=build))
    with pytest.raises(GateError, match="pred_boxes"):
        export_fresh(root, 112)
    assert (root / decoder / "1" / "model.onnx").read_bytes() == before
    assert not any((root / name / "manifest.json").exists() for name in (decoder, text))
    (staging,) = (path for path in tmp_path.iterdir() if path != root)
    assert [path.name for path in staging.iterdir()] == [text]
    factor = 1.0
    export_fresh(root, 112)
    assert sorted(built) == sorted([decoder, text, decoder])
    assert all((root / name / "manifest.json").exists() for name in (decoder, text))
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Builds as ONNX Runtime's tool does, each sub-model once."""
    folder = tmp_path_factory.mktemp("traced")

    def build(module, model, variant, path):
        kept = folder / f"{model.name}.onnx"
        if not kept.exists():
            ready("onnxruntime").build(module, model, variant, kept)
        shutil.copy(kept, path)
        return {}

    return build


@pytest.mark.parametrize(
    ("part", "initializer", "place"),
    [
        pytest.param("vision_encoder", "blocks.2.", "first layer .* is blocks_2", id="third layer of the image"),
        pytest.param(
            "text_encoder", "layers.1.mlp.fc2.bias", "first layer .* is layers_1", id="last layer of the text"
        ),
        pytest.param("vision_encoder", "levels.0.", "no layer .* is off", id="behind the layers"),
    ],
)
def test_the_first_layer_that_is_off_is_named(sized, source, traced, part, initializer, place):
    def build(module, model, variant, path):
        traced(module, model, variant, path)
        perturb(path, initializer, 30.0)
        return {}

    variant = Variant(112, 20, "fp32", checkpoint=source.record)
    sample = gate_samples(drawn_frames(1, 112), source.tokenizer, variant)[0]
    feed = {"pixel_values": sample.pixel_values} if part == "vision_encoder" else {"input_ids": sample.input_ids}
    said = first_layer_off(replace(ready("onnxruntime"), build=build), sized(112), variant, part, feed)
    assert re.search(place, said), said


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        pytest.param(OutputCheck("m", "o", float("nan"), 0.0), "cosine nan", id="not a number"),
        pytest.param(OutputCheck("m", "o", 0.9, 0.0), "cosine 0.900000", id="another direction"),
        pytest.param(OutputCheck("m", "o", 1.0, 2e-4), "relative error 2.00e-04, expected at most 1e-04", id="too far"),
    ],
)
def test_output_failures_read_well(check, sentence):
    assert sentence in (check.failure(LIMITS["fp32"]) or "")


def test_detection_failures_read_well():
    counts = dict(expected=4, matched=3, missing=1, unexpected=0, borderline=0)
    check = DetectionCheck(0.5, **counts, box_iou=0.9, mask_iou=1.0, score_difference=0.0)
    assert check.failures(LIMITS["fp16"]) == [
        "detections: 1 of 4 missing, 0 unexpected at threshold 0.500",
        "detections: least box IoU is 0.9000, expected at least 0.98",
    ]


def test_overlaps():
    unit = np.array([[0.0, 0.0, 1.0, 1.0]])
    assert box_iou(unit, np.array([[0.5, 0.0, 1.5, 1.0]])) == pytest.approx(1 / 3)
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 1.0
    full, left = np.ones((1, 2, 2), bool), np.array([[[True, False], [True, False]]])
    assert mask_iou(full, left) == 0.5
    assert mask_iou(~full, ~full) == 1.0


def test_graph_that_differs_from_the_record_is_refused(exported):
    export = exported(112)
    path = export.root / export.variant.decoder.name / "1" / "model.onnx"
    check_graph(path, export.variant.decoder)
    with pytest.raises(ValueError, match="disagree"):
        check_graph(path, export.variant.mask_head)


def test_manifest_says_what_it_was_made_from(exported):
    export = exported(112)
    data = json.loads((export.root / export.variant.decoder.name / "manifest.json").read_text())
    assert data["engine"] == "onnxruntime"
    assert data["precision"] == "fp32"
    assert set(data["gate"]["outputs"]) == {t.name for t in export.variant.decoder.outputs}
    assert data["gate"]["detections"]["missing"] == 0
    assert len(data["files"]["model.onnx"]) == len(data["checkpoint"]["sha256"]) == 64
    assert {"torch", "transformers", "onnx"} <= set(data["versions"])


def test_a_mask_pixel_that_is_undecided_may_fall_on_either_side():
    """One pixel of nine lies within the margin of zero and flips: overlap 8/9 without the margin, full with it. A
    decided pixel that flips counts."""
    reference = np.full((1, 1, 4, 4), -5.0, np.float32)
    reference[0, 0, :3, :3] = 5.0
    reference[0, 0, 1, 1] = 0.05
    shared = {
        "pred_logits": np.array([[4.0]]),
        "presence_logits": np.array([[4.0]]),
        "pred_boxes": np.array([[[0.0, 0.0, 0.5, 0.5]]]),
    }
    flipped = reference.copy()
    flipped[0, 0, 1, 1] = -0.05
    wrong = flipped.copy()
    wrong[0, 0, 0, 0] = -5.0
    picks = np.array([[0]])

    def overlap(logits, margin):
        found, truth = {**shared, "mask_logits": logits}, {**shared, "mask_logits": reference}
        return check_detections(found, truth, picks, 0.5, 0.0, margin).mask_iou

    assert overlap(flipped, 0.0) == pytest.approx(8 / 9)
    assert overlap(flipped, 0.1) == 1.0
    assert overlap(wrong, 0.1) == pytest.approx(7 / 8)
