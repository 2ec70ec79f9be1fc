"""The comparison of engines by average precision: what is measured is what is served, and what is off is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ensemble.postprocess import Detections, unpack
from ensemble.server.requirements import ServerError
from export.tiny import CHECKPOINT
from export.tiny.evaluate import held_out
from perf.bench import accuracy, in_process


def row(**points):
    return {"AP_points": 0.0, "AP50_points": 0.0} | points


@pytest.mark.parametrize(
    ("points", "off"),
    [
        ({}, False),
        ({"AP_points": 0.5}, False),
        ({"AP_points": -0.51}, True),  # worse than fp32
        ({"AP50_points": 0.51}, True),  # better is a difference as well
        ({"AP50_points": float("nan")}, True),
    ],
)
def test_half_a_point_is_allowed(points, off):
    assert accuracy.beyond(row(**points)) == off


def test_rows_hold_figures_and_differences_in_points():
    def figures(ap):
        kinds = {kind: {"AP": ap, "AP50": 0.9} for kind in ("box", "mask")}
        return {prompts: {"presence_accuracy": 0.98765, **kinds} for prompts in ("text", "exemplar")}

    rows = accuracy.rows_of("aoti", "fp16", 252, figures(0.752), figures(0.75))
    assert [(r["prompts"], r["of"]) for r in rows] == [
        ("text", "box"),
        ("text", "mask"),
        ("exemplar", "box"),
        ("exemplar", "mask"),
    ]
    assert rows[0]["AP"] == 0.752
    assert rows[0]["presence"] == 0.9877
    assert (rows[0]["AP_points"], rows[0]["AP50_points"]) == (0.2, 0.0)


def test_a_frame_is_taken_apart_by_question_and_cut_at_the_best():
    (case,) = held_out(1)
    count, size = in_process.TOP + 3, 8
    bits = np.zeros((count + 1, size, 1), np.uint8)
    bits[count] = 255
    ids = np.array([1] * count + [0], np.int32)
    scores = np.linspace(0.9, 0.1, count + 1, dtype=np.float32)
    presence = np.linspace(0, 1, len(case.questions), dtype=np.float32)
    found = Detections(np.zeros((count + 1, 4), np.float32), scores, ids, presence, bits)
    answers = in_process.by_question(case, found, size)
    assert [len(a.scores) for a in answers] == [1, in_process.TOP, *[0] * (len(case.questions) - 2)]
    assert answers[0].masks.all()
    assert not answers[1].masks.any()
    assert answers[1].scores[0] == scores[0]
    assert [a.presence for a in answers] == presence.tolist()


@pytest.mark.parametrize(("cases", "sizes"), [(0, []), (3, [3]), (8, [8]), (17, [8, 8, 1])])
def test_batches(cases, sizes):
    assert [len(batch) for batch in in_process.batches(iter(range(cases)), 8)] == sizes


def test_the_server_s_pipeline_answers_as_the_model_does(repository):
    cases = list(held_out(3))
    served = next(s for s in accuracy.variants(repository) if s.variant.resolution == 140)
    with in_process.opened(served) as answer:
        ours = list(answer(cases))
    for case, found, expected in zip(cases, ours, accuracy.reference(cases, CHECKPOINT, 140), strict=True):
        assert any(question.prompt.boxes for question in case.questions)
        for a, b in zip(found, expected, strict=True):
            assert a.presence == pytest.approx(b.presence, abs=1e-4)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
            np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
            assert np.count_nonzero(a.masks != b.masks) <= 1e-3 * a.masks.size


def test_an_engine_that_is_off_fails_the_command(repository, tmp_path, monkeypatch, capsys):
    """The masks turned upside down on their way, the rest as it should be."""

    def upside_down(bits, size):
        return unpack(bits, size)[:, ::-1]

    (tmp_path / "one").mkdir()
    for model in repository.glob("sam3_*"):
        if "_r252" not in model.name:
            (tmp_path / "one" / model.name).symlink_to(model)
    output = tmp_path / "accuracy.json"
    command = ["--repository", str(tmp_path / "one"), "--scenes", "2", "--output", str(output)]
    assert accuracy.main(command) == 0
    monkeypatch.setattr(in_process.postprocess, "unpack", upside_down)
    assert accuracy.main(command) == 1
    data = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == data
    assert [(r["engine"], r["of"]) for r in data["rows"] if accuracy.beyond(r)] == [("onnxruntime", "mask")] * 2
    assert {"torch", "transformers", "pycocotools"} <= set(data["versions"])
    assert data["details"][1]["least_cosine"] > 0.999


def test_what_cannot_be_measured_is_refused(repository, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert accuracy.main(["--repository", str(tmp_path / "empty")]) == 2
    assert "sam3-export" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(CHECKPOINT, other)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    first = next(iter(weights))
    weights[first] = weights[first] + torch.ones_like(weights[first])
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ServerError, match="other weights"):
        accuracy.check_origin(accuracy.variants(repository), Path(other))
