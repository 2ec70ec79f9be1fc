"""A video model's folder: its tracker is read where it is asked for, and refused where it is not whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3VideoModel

from export import checkpoint
from export.checkpoint import CheckpointError
from export.checkpoint.random_weights import random_source
from export.cli import main

DOUBLED, PREFIX = "tracker_model.tracker_model.", "tracker_model."


@pytest.fixture
def changed(video_folder, tmp_path):
    """A function that saves the folder with other weights or another configuration."""

    def save(weights=lambda state: state, config=lambda data: data):
        folder = tmp_path / "changed"
        shutil.copytree(video_folder, folder)
        state = load_file(folder / "model.safetensors")
        save_file(weights(state), folder / "model.safetensors", metadata={"format": "pt"})
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config(told)))
        return str(folder)

    return save


def once(state):
    """Names as the original has them; transformers 5.17 saves the prefix twice."""
    return {name.replace(DOUBLED, PREFIX): tensor for name, tensor in state.items()}


def test_all_weights_are_those_of_the_folder_and_accounted_for(video, video_folder):
    theirs = Sam3VideoModel.from_pretrained(video_folder)
    mine = {**video.model.state_dict(prefix="detector_model."), **video.tracker.state()}
    assert set(mine) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine[name], tensor), name
    assert video.account.used == len(mine)
    assert video.account.unused == {}
    assert (video.tracker.record.trunk_size, video.tracker.record.hidden_size) == (192, 128)


def test_the_same_folder_serves_pictures_alone(video, video_folder):
    pictures = checkpoint.load(str(video_folder))
    assert pictures.tracker is None
    assert pictures.account.unused == {"the tracker of a video model": 277}
    assert pictures.part_sha256("vision_encoder") == video.part_sha256("vision_encoder")


def test_names_with_the_prefix_once_are_the_same(video, changed):
    assert checkpoint.load(changed(once), video=True).part_sha256("tracker_step") == video.part_sha256("tracker_step")


def test_another_resolution_shares_the_weights(tracker):
    small = tracker.at_size(140)
    assert (small.model.image_size, tracker.model.image_size) == (140, 252)
    name = "mask_decoder.conv_s0.weight"
    assert small.model.get_parameter(name).data_ptr() == tracker.model.get_parameter(name).data_ptr()
    assert small.model.memory_attention.position_ids.shape[0] == 100


def without(part):
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


def renamed(state):
    return {name.replace("no_object_pointer", "absent_pointer"): tensor for name, tensor in state.items()}


def with_nan(state):
    return {
        n: torch.full_like(t, torch.nan) if "tracker_neck.fpn_layers.0.proj1.bias" in n else t for n, t in state.items()
    }


def tracker_of(**numbers):
    return lambda data: data | {"tracker_config": data["tracker_config"] | numbers}


@pytest.mark.parametrize(
    ("weights", "config", "sentence"),
    [
        (without("memory_encoder."), None, r"weights are missing: tracker_model\.memory_encoder.* download or save"),
        (renamed, None, r"are not known: .*absent_pointer; 1 weights are missing: tracker_model\.no_object_pointer"),
        (without("tracker_"), None, r"expected the weights of a tracker \(tracker_model\.\.\..* leave --video out"),
        (with_nan, None, r"hold NaN or infinity: tracker_neck\.fpn_layers\.0\.proj1\.bias"),
        (None, tracker_of(memory_attention_num_attention_heads=2), r"heads is 2, expected 1"),
        (None, tracker_of(memory_attention_feed_forward_hidden_size=256), r"have another shape: .*linear1"),
        (None, lambda data: data["detector_config"] | {"model_type": "sam3"}, r"found one of type 'sam3'; pass the"),
    ],
    ids=["missing", "renamed", "none", "NaN", "heads", "width", "no video model"],
)
def test_what_is_not_whole_is_refused(weights, config, sentence, changed):
    folder = changed(*([weights] if weights else []), **({"config": config} if config else {}))
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(folder, video=True)


def test_the_command_refuses_before_any_work(tmp_path, folder, capsys):
    command = ["--checkpoint", str(folder), "--video", "--repository", str(tmp_path / "repository")]
    assert main(command) == 2
    assert "expected the configuration of a video model" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "repository").exists()


def test_random_weights_have_a_tracker_where_it_is_asked_for(video, monkeypatch):
    monkeypatch.setattr("export.checkpoint.random_weights.Sam3TrackerVideoConfig", lambda: video.tracker.model.config)
    source = random_source(video.model.config, video=True)
    assert source.tracker is not None
    assert source.tracker.record == video.tracker.record
    assert all(tensor.isfinite().all() for tensor in source.tracker.state().values())
    assert random_source(video.model.config).tracker is None
