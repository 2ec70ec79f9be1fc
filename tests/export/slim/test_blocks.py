"""Blocks left out: the right ones go, the others are what they were, and the search takes the cheapest."""

from __future__ import annotations

import json

import pytest
import torch

from export.checkpoint import load
from export.slim.blocks import bridged, search, without_blocks
from export.slim.cli import main


def features(model):
    torch.manual_seed(0)
    return model.vision_encoder(torch.randn(1, 3, 126, 126)).fpn_hidden_states[2]


def sized(source):
    from export.checkpoint import at_size

    return at_size(source.model, 126, 20)


@pytest.mark.parametrize(("dropped", "whole"), [([0], [0, 2]), ([1], [2]), ([3, 0], [0]), ([1, 2, 3], [])])
def test_the_rest_computes_what_it_did_with_blocks_bridged(source, dropped, whole):
    model = sized(source)  # windows of 4 in a map of 9: padded; blocks 1 and 3 see the whole image
    smaller = without_blocks(model, dropped)
    assert smaller.config.vision_config.backbone_config.global_attn_indexes == whole
    assert smaller.config.vision_config.backbone_config.num_hidden_layers == 4 - len(dropped)
    with bridged(model, dropped):
        expected = features(model)
    torch.testing.assert_close(features(smaller), expected)
    assert not torch.allclose(features(model), expected)  # and the model is whole again


def test_the_search_takes_the_cheapest_beside_those_that_went(source):
    model = sized(source)
    price = {0: 5.0, 1: 2.0, 2: 1.0, 3: 4.0}

    def cost(changed):
        layers = changed.vision_encoder.backbone.layers
        gone = {n for n, layer in enumerate(layers) if "forward" in vars(layer)}
        return sum(price[n] for n in gone) + 10 * ({1, 2} <= gone)  # 1 and 2 stand in for each other

    choices = search(model, 2, cost)
    assert [(choice.block, choice.cost) for choice in choices] == [(2, 1.0), (3, 5.0)]
    assert choices[1].others == {0: 6.0, 1: 13.0}


def test_the_command_measures_and_writes(checkpoint, tmp_path, capsys):
    target = tmp_path / "dropped"
    options = "--count 1 --batch 1 --workers 0 --resolution 56 --frame-count 1"
    assert main(["drop-blocks", str(checkpoint), str(target), *options.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    costs = {int(n): cost for n, cost in told["search"][0]["others"].items()}
    assert len(costs) == 7
    assert told["search"][0]["cost"] < min(costs.values())
    assert max(costs, key=costs.get) == 0 or told["search"][0]["block"] != 0
    assert told["blocks_left_out"] == [told["search"][0]["block"]]
    assert told["bytes_after"] < told["bytes_before"]
    assert json.loads((target / "slim.json").read_text())["blocks_left_out"] == told["blocks_left_out"]
    trunk = load(str(target)).model.config.vision_config.backbone_config
    assert trunk.num_hidden_layers == 7


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--blocks 4", "expected blocks 0 to 3"),
        ("--blocks 1 1", "expected each block once"),
        ("--blocks 0 1 2 3", "expected 1 to 3 of 4 blocks"),
        ("--count 4", "expected 1 to 3 of 4 blocks"),
        ("--count 1 --resolution 100", "no multiple of the checkpoint's patches"),
        ("--count 1 --frames /nowhere", "to learn from, found none"),
    ],
)
def test_what_cannot_be_left_out_is_refused(folder, tmp_path, capsys, options, sentence):
    assert main(["drop-blocks", str(folder), str(tmp_path / "new"), *options.split(), "--workers", "0"]) == 2
    assert sentence in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "new").exists()
