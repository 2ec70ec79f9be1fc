"""The small checkpoint holds detector and tracker, as `Sam3VideoModel` keeps them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Model, Sam3VideoModel

from export.tiny import CHECKPOINT
from export.tiny.video.configuration import WEIGHTS_FILE, load_tracker_weights, random_video_model, tracker_weights
from export.tiny.video.evaluate import evaluate, load_tracker
from export.tiny.video.join import save


def test_one_folder_for_images_and_videos():
    video, said = Sam3VideoModel.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not any(said.values())
    assert video.dtype == torch.float32
    image = Sam3Model.from_pretrained(CHECKPOINT)
    for name, value in image.state_dict().items():
        torch.testing.assert_close(value, video.detector_model.state_dict()[name], atol=0, rtol=0)


def test_the_configuration_is_what_joining_writes_and_names_no_folder(tmp_path):
    save(random_video_model(), tmp_path)
    text = (CHECKPOINT / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(text)
    assert CHECKPOINT.name + '"' not in text


def test_weights_of_another_tracker_are_refused(tmp_path):
    weights = tracker_weights(random_video_model())
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=rf"1 are missing and 0 not known, such as {name}"):
        load_tracker_weights(random_video_model(), tmp_path)
    assert len(weights) == sum(key.startswith("tracker") for key in load_file(CHECKPOINT / "model.safetensors"))


def test_it_follows_what_it_was_given():
    told = evaluate(load_tracker(CHECKPOINT, (140,)), 140, [1], frames=10)["all"]
    assert told["objects"] >= 2
    assert told["j_and_f"] > 0.75
