"""A repository that was copied from another machine is measured before it is served, once; what is off is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ensemble.gate import believe, cli, truths
from ensemble.server import cli as serve
from ensemble.server import repository as placement
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from ensemble.server.videos import videos_of

ELSEWHERE = {"processor": "another machine's", "engine": "onnxruntime 1.0"}


@pytest.fixture
def copied(repository, tmp_path) -> Path:
    """The repository's 140, as it was exported on another machine."""
    root = tmp_path / "repository"
    for folder in repository.iterdir():
        if "r252" not in folder.name:
            shutil.copytree(folder, root / folder.name)
    for path in root.glob("*/manifest.json"):
        data = json.loads(path.read_text())
        data["gate"]["on"] = ELSEWHERE
        path.write_text(json.dumps(data))
    return root


@pytest.fixture
def measured(monkeypatch) -> list[list[str]]:
    """The sub-models of each measurement, which is made all the same."""
    seen: list[list[str]] = []
    apart = believe.measure_apart

    def noted(repository, front, models, number):
        seen.append(list(models))
        return apart(repository, front, models, number)

    monkeypatch.setattr(believe, "measure_apart", noted)
    return seen


def spoil(root: Path, part: str) -> Path:
    """Turns the sign of the largest of the sub-model's weights: its file is whole, and its answers are wrong."""
    (path,) = root.glob(f"sam3_{part}*/1/model.onnx")
    model = onnx.load(str(path))
    largest = max(model.graph.initializer, key=lambda weight: len(weight.raw_data))
    turned = numpy_helper.from_array(-numpy_helper.to_array(largest), largest.name)
    largest.CopyFrom(turned)
    onnx.save(model, str(path))
    return path


@pytest.mark.server
def test_it_is_measured_once_and_served(copied, measured):
    with EmbeddedServer(copied) as server:
        server.probe()
    assert measured == [[m.name for m in placement.read(copied)[0].variant.sub_models]]
    noted = json.loads((copied.parent / "repository.here" / "passed.json").read_text())["passed"]
    assert noted["sam3_decoder_r140_q50"][0]["outputs"]["pred_logits"]["cosine"] > 0.999999
    believe.believe(copied, placement.read(copied), {})
    assert len(measured) == 1, "what passed is believed"


def test_a_break_is_refused_with_its_figures(copied, measured, caplog):
    """By `sam3-serve`, which then starts nothing."""
    spoil(copied, "decoder")
    with caplog.at_level(logging.INFO):
        assert serve.main(["--repository", str(copied)]) == 1
    said = caplog.text
    assert "not served: sam3_decoder_r140_q50: " in said
    assert "has cosine" in said
    assert "expected at least 0.999999" in said
    assert "sam3-export --engine onnxruntime" in said, "the remedy"
    assert "starting Triton on" in said
    assert "ready" not in said
    noted = json.loads((copied.parent / "repository.here" / "passed.json").read_text())["passed"]
    assert "sam3_decoder_r140_q50" not in noted
    assert "sam3_vision_encoder_r140" in noted, "what passed is not measured again"
    with pytest.raises(ServerError, match="sam3_decoder_r140_q50: "):
        believe.believe(copied, placement.read(copied), {})
    assert measured[-1] == ["sam3_decoder_r140_q50"]


def test_a_file_that_changed_since_it_passed_is_measured_again(copied, measured, capsys):
    assert cli.main([str(copied)]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    believe.believe(copied, placement.read(copied), {})
    assert measured == []
    spoil(copied, "mask_head")
    with pytest.raises(ServerError, match="sam3_mask_head_r140_q50: mask_"):
        believe.believe(copied, placement.read(copied), {})
    assert measured == [["sam3_mask_head_r140_q50"]]


def test_a_break_in_a_tracker_is_refused_before_videos_are_served(video_repository, tmp_path, measured):
    root = shutil.copytree(video_repository, tmp_path / "repository")
    known = placement.read(root)
    videos = videos_of(known, known, None, None)
    manifest = root / "sam3_tracker_seed_r140" / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(data | {"gate": data["gate"] | {"on": ELSEWHERE}}))
    believe.believe(root, known, {}, videos)
    assert measured == [["sam3_tracker_seed_r140"]]
    spoil(root, "tracker_seed")
    with pytest.raises(ServerError, match=r"not served: sam3_tracker_seed_r140: pointer has cosine .*\n.* --video "):
        believe.believe(root, known, {}, videos)
    believe.believe(root, known, {})  # pictures need no tracker


@pytest.mark.parametrize("gone", [True, False], ids=["no truths", "cut off"])
def test_what_nobody_ran_cannot_be_served_without_truths(copied, gone):
    path = copied / "sam3_r140" / truths.FILE
    path.unlink() if gone else path.write_bytes(path.read_bytes()[:1000])
    believe.believe(copied, placement.read(copied), {})  # it passed at its export, wherever that was
    manifest = copied / "sam3_vision_encoder_r140" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"gate": None}))
    with pytest.raises(ServerError, match=r"sam3_vision_encoder_r140 is not served: it was built on a machine"):
        believe.believe(copied, placement.read(copied), {})


def test_an_artifact_that_cannot_be_opened_is_named(copied, capsys):
    (copied / "sam3_text_encoder" / "1" / "model.onnx").write_bytes(b"no graph")
    assert cli.main([str(copied), "--models", "sam3_text_encoder"]) == 1
    assert "sam3_text_encoder cannot be run here" in json.loads(capsys.readouterr().out)["error"]


def test_feature_maps_differ_from_pixel_to_pixel_and_from_image_to_image():
    small = {name: np.ones((1, 2, 3, 3), np.float16) for name in truths.LEVELS}
    small["fpn_2"][..., 0] = 2
    maps = truths.feature_maps(small, 2)
    assert [maps[name].shape[-1] for name in truths.LEVELS] == [12, 6, 3]
    assert len(np.unique(maps["fpn_0"])) == 4
    assert (maps["fpn_2"][0] == maps["fpn_2"][1][..., ::-1]).all()
    assert (maps["fpn_2"][0] != maps["fpn_2"][1]).any()


@pytest.mark.parametrize("size", [1, 1000, 65_536, 65_537, 21_233_664])
def test_kept_values_are_different_ones(size):
    found = truths.places(size)
    assert len(np.unique(found)) == len(found) == min(size, truths.VALUES)
    assert 0 <= found.min() <= found.max() < size
