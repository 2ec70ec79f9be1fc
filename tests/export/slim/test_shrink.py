"""Lighter architectures: channels and layers are taken from the whole model, and numbers that cannot be are named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import Sam3Model

from export.checkpoint import load
from export.checkpoint.random_weights import random_source
from export.slim.cli import main
from export.slim.shrink import Architecture, dispensable, planned, shrink, spread


def test_channels_and_layers_are_the_whole_models(source):
    wanted = Architecture(width=48, depth=3, mlp=80, encoder_layers=1, decoder_layers=1)
    small = shrink(source.model, wanted)
    trunk = small.config.vision_config.backbone_config
    assert (trunk.hidden_size, trunk.num_attention_heads, trunk.intermediate_size) == (48, 3, 80)
    assert trunk.num_hidden_layers == 3
    assert [layer.window_size for layer in small.vision_encoder.backbone.layers].count(0) == 2
    whole, rest = source.model.state_dict(), small.state_dict()
    whole_norm = whole["vision_encoder.backbone.embeddings.position_embeddings"]
    norm = rest["vision_encoder.backbone.embeddings.position_embeddings"]
    stream = [int((channel == whole_norm[0].T).all(1).nonzero()[0]) for channel in norm[0].T]
    assert stream == sorted(set(stream))
    name = "vision_encoder.neck.fpn_layers.2.proj1.weight"
    assert torch.equal(rest[name], whole[name][:, stream])  # the same channels everywhere
    query = "vision_encoder.backbone.layers.0.attention.q_proj.weight"
    rows = [int((whole[query][:, stream] == row).all(1).nonzero()[0]) for row in rest[query]]
    heads = [row // 16 for row in rows]
    assert all(heads.count(head) == 16 for head in heads)  # heads go or stay whole
    assert torch.equal(rest["detr_decoder.layers.0.mlp.fc1.weight"], whole["detr_decoder.layers.0.mlp.fc1.weight"])
    output = small.vision_encoder(torch.zeros(1, 3, 112, 112)).fpn_hidden_states
    assert all(level.isfinite().all() for level in output)


def test_a_model_of_the_same_size_is_the_same(source):
    same = shrink(source.model, Architecture(width=64, depth=4, encoder_layers=2)).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in source.model.state_dict().items())


def test_the_weakest_channels_go(source):
    config = source.model.config
    model = random_source(config, seed=3).model
    weak = model.vision_encoder.backbone.layers[0].mlp
    weak.fc1.weight.data[::2] *= 0.01
    weak.fc2.weight.data[:, ::2] *= 0.01
    small = shrink(model, Architecture(mlp=80))
    assert torch.equal(small.vision_encoder.backbone.layers[0].mlp.fc1.weight, weak.fc1.weight[1::2])


def test_layers_stay_evenly():
    assert spread(6, 4) == [0, 2, 3, 5]
    assert spread(6, 6) == list(range(6))
    assert spread(3, 1) == [0]
    whole = [7, 15, 23, 31]
    gone = dispensable(32, whole, 24)
    assert len(set(gone)) == 8
    assert not {0, 30, *whole} & set(gone)
    assert [sum(block // 8 == stage for block in gone) for stage in range(4)] == [2, 2, 2, 2]
    assert dispensable(4, [1, 3], 3) in ([0], [2])


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Architecture(), "expected something to shrink"),
        (Architecture(width=50), "16.67 channels a head, expected 16"),
        (Architecture(width=48, heads=4), "12 channels a head, expected 16"),
        (Architecture(width=128), "width is 128, expected 1 to the checkpoint's 64"),
        (Architecture(depth=2), "leaves no windowed block beside 2"),
        (Architecture(decoder_layers=0), "decoder_layers is 0, expected 1 to the checkpoint's 2"),
        (Architecture(encoder_layers=9), "encoder_layers is 9, expected 1 to the checkpoint's 2"),
    ],
)
def test_numbers_that_do_not_fit_are_named(source, wanted, sentence):
    with pytest.raises(ValueError, match="do not fit together") as error:
        planned(source.model.config, wanted)
    assert sentence in str(error.value)
    assert (
        planned(source.model.config, replace(Architecture(), width=48)).vision_config.backbone_config.hidden_size == 48
    )


def test_the_command_writes_a_checkpoint_that_transformers_loads(folder, tmp_path, capsys):
    target = tmp_path / "small"
    options = "--width 48 --depth 3 --encoder-layers 1 --frame-count 1"
    assert main(["shrink", str(folder), str(target), *options.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["architecture"] == {"width": 48, "depth": 3, "encoder_layers": 1}
    assert told["recovery"].startswith("needed")
    assert told["bytes_after"] < 0.9 * told["bytes_before"]
    assert -1 <= told["agreement"]["cosine"] < 1
    model, ours = Sam3Model.from_pretrained(target), load(str(target))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in ours.model.state_dict().items())
    assert main(["shrink", str(folder), str(tmp_path / "other"), "--width", "50"]) == 2
    assert "do not fit together" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "other").exists()
