"""Pooled keys: a mean of what is there, kept by the folder, and the same in transformers' model, both decoders and
ONNX."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from ensemble.spec import Variant
from export.checkpoint import CheckpointError, at_size, load
from export.engines.onnx import export_onnx
from export.engines.onnxruntime import onnx_session
from export.fused.parts import make_fused_part
from export.slim.cli import main
from export.sub_models import pooled_keys
from export.sub_models.parts import Style, make_part


@pytest.fixture(scope="module")
def pooled(folder, tmp_path_factory):
    """The random checkpoint with pooled keys, as the command writes it."""
    target = tmp_path_factory.mktemp("pooled") / "pooled"
    assert main(["pool-keys", str(folder), str(target), "--frame-count", "1"]) == 0
    return load(str(target))


def test_a_cell_is_the_mean_of_the_patches_that_are_there():
    tokens = torch.arange(9.0).reshape(1, 9, 1)  # rows 0 1 2, 3 4 5, 6 7 8
    assert pooled_keys.pool(tokens, 3).flatten().tolist() == [2.0, 3.5, 6.5, 8.0]
    whole = torch.randn(2, 16, 5)
    means = torch.nn.functional.avg_pool2d(whole.transpose(1, 2).reshape(2, 5, 4, 4), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled_keys.pool(whole, 4), means)


def test_the_property_survives_saving_loading_and_another_size(pooled, tmp_path):
    pooled.model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["detr_encoder_config"]["pooled_keys"] == 2
    for model in (pooled.model, at_size(pooled.model, 140, 20), copy.deepcopy(pooled.model)):
        counts = [len(layer.self_attn._forward_pre_hooks) for layer in model.detr_encoder.layers]
        assert counts == [0, 1]
    model = pooled_keys.apply(pooled_keys.apply(copy.deepcopy(pooled.model)))
    assert len(model.detr_encoder.layers[1].self_attn._forward_pre_hooks) == 1
    model.config.detr_encoder_config.pooled_keys = None
    assert not pooled_keys.apply(model).detr_encoder.layers[1].self_attn._forward_pre_hooks


def encoder_memory(model, feed):
    """What transformers' DETR encoder makes of a decoder's inputs, a pair an image."""
    features, _, prompt, mask = feed
    position = model.vision_encoder.neck.position_encoding(features.shape, features.device, features.dtype)
    return model.detr_encoder(
        vision_features=[features], text_features=prompt, vision_pos_embeds=[position], text_mask=mask
    ).last_hidden_state


@pytest.mark.parametrize("resolution", [112, 126])  # 8 and 9 patches a side
def test_decoders_compute_what_transformers_does(source, pooled, resolution):
    model, patches = at_size(pooled.model, resolution, 20), resolution // 14
    torch.manual_seed(0)
    features, prompt = torch.randn(2, 64, patches, patches), torch.randn(2, 5, 64)
    feed = features, torch.tensor([0, 1], dtype=torch.int32), prompt, torch.ones(2, 5, dtype=torch.int32)
    truth = encoder_memory(model, feed)
    for module in (
        make_part("decoder", model, Style("explicit", "plain"), "fp32"),
        make_part("decoder", model, Style("chunked", "plain"), "fp32"),
        make_fused_part("decoder", model, "fp32", "plain"),
    ):
        torch.testing.assert_close(module(*feed)[4], truth, atol=1e-4, rtol=1e-4)
    whole = encoder_memory(at_size(source.model, resolution, 20), feed)
    assert (whole - truth).abs().max() > 0.01  # or the test would see no difference


def test_onnx_runtime_pools_an_odd_map(pooled, tmp_path):
    variant = Variant(126, 20, "fp32", checkpoint=pooled.record)
    model = at_size(pooled.model, 126, 20)
    del model.detr_decoder.layers[1:]  # nothing is pooled in them, and each takes seconds to trace
    module = make_part("decoder", model, Style("explicit", "plain"), "fp32")
    path = tmp_path / "decoder.onnx"
    export_onnx(module, variant.decoder, path)
    torch.manual_seed(0)
    feed = {
        "fpn_2": torch.randn(1, 64, 9, 9),
        "image_index": torch.zeros(2, dtype=torch.int32),
        "prompt_features": torch.randn(2, 32, 64),
        "prompt_mask": torch.ones(2, 32, dtype=torch.int32),
    }
    expected = module(*(feed[tensor.name] for tensor in variant.decoder.inputs))
    found = onnx_session(path)({name: tensor.numpy() for name, tensor in feed.items()})
    for tensor, wanted in zip(variant.decoder.outputs, expected, strict=True):
        np.testing.assert_allclose(found[tensor.name], wanted.numpy(), atol=2e-4, err_msg=tensor.name)


def test_what_cannot_be_pooled_is_refused(pooled, folder, tmp_path, capsys):
    place = str(pooled.folder)
    assert main(["pool-keys", place, str(tmp_path / "again")]) == 2
    assert "whose keys are not pooled yet" in json.loads(capsys.readouterr().out)["error"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in pooled.folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    config["detr_encoder_config"]["pooled_keys"] = 3
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="pooled_keys is 3, expected 2"):
        load(str(broken))
