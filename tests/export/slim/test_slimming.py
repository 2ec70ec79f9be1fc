"""Slimmed folders: they load again as what they were made of, find the same objects, and are whole or not there."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Model, Sam3Processor

from ensemble.spec import Variant
from export.checkpoint import CheckpointError, load
from export.engines.onnx import export_onnx
from export.engines.onnxruntime import onnx_session
from export.gate.frames import drawn_frames
from export.slim import slimming
from export.slim.cli import main
from export.slim.slimming import Job, SlimError, slim
from export.sub_models.parts import Style, make_part
from tests.export.checkpoint.meta_files import meta_state

TEXT = ("text_encoder.", "text_projection.")


@pytest.fixture(scope="module")
def trained(checkpoint):
    """The trained small checkpoint, whose weights are in fp16."""
    return load(str(checkpoint))


@pytest.fixture
def training(folder, state, tmp_path):
    """A training's folder in Meta's names: weights, a tracker, and an optimizer as large as two copies of them."""
    path = shutil.copytree(folder, tmp_path / "training", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = {f"detector.{name}": tensor for name, tensor in meta_state(state).items()}
    weights["tracker.model.maskmem_tpos_enc"] = torch.ones(64, 64)
    moments = {n: {"exp_avg": t + 1, "exp_avg_sq": t.square()} for n, t in enumerate(state.values())}
    torch.save({"model": weights, "optimizer": {"state": moments}, "epoch": 3}, path / "last.ckpt")
    return path


def weights_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def test_strip_keeps_the_weights_bit_for_bit_and_nothing_else(training, state, tmp_path):
    source = load(str(training))
    report = slim(Job(source, tmp_path / "stripped"))
    assert report["same"] == {"weights": "bit for bit"}
    assert report["bytes_after"] == (tmp_path / "stripped" / "model.safetensors").stat().st_size
    assert report["bytes_after"] < report["bytes_before"] / 2.9
    found = weights_of(tmp_path / "stripped")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    again = load(str(tmp_path / "stripped"))
    assert again.sha256 == source.sha256
    assert json.loads((tmp_path / "stripped" / "slim.json").read_text()) == report


def test_transformers_loads_what_was_written(training, source, tmp_path):
    slim(Job(load(str(training)), tmp_path / "stripped"))
    _, said = Sam3Model.from_pretrained(tmp_path / "stripped", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = Sam3Processor.from_pretrained(tmp_path / "stripped")
    ids = processor(text=["red circle"], return_tensors="pt")["input_ids"][0].tolist()
    assert ids == source.tokenizer.encode("red circle").ids


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_strip_keeps_each_dtype(folder, state, tmp_path, dtype):
    path = shutil.copytree(folder, tmp_path / "mixed")
    mixed = {name: tensor.to(dtype) if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    save_file(mixed, path / "model.safetensors")
    slim(Job(load(str(path)), tmp_path / "stripped"))
    found = weights_of(tmp_path / "stripped")
    assert all(found[name].dtype == mixed[name].dtype and torch.equal(found[name], mixed[name]) for name in mixed)
    said = json.loads((tmp_path / "stripped" / "config.json").read_text())["dtype"]
    assert said == str(dtype).removeprefix("torch.")


def test_half_finds_the_same_objects(trained, tmp_path):
    """In bf16: the shipped weights are stored in fp16, which would round nothing."""
    report = slim(Job(trained, tmp_path / "half", "bf16", frames=drawn_frames(2, 140), resolution=140))
    found = report["same"]["detections"]
    assert found["matched"] == found["expected"] > 10
    assert (found["missing"], found["unexpected"]) == (0, 0)
    assert found["box_iou"] > 0.98
    assert report["same"]["cosine"] > 0.99998
    assert set(report["half"]["stayed_fp32"]) == {"vector", "boxes"}


def test_half_of_fp32_is_half_as_large_and_exports_to_the_same(source, folder, tmp_path, error):
    report = slim(Job(source, tmp_path / "half", "fp16", frames=drawn_frames(1, 112), resolution=112))
    assert report["bytes_after"] < 0.62 * report["bytes_before"]  # the real size: 0.501
    again = load(str(tmp_path / "half"))
    assert again.account.dtypes.keys() == {"float16", "float32"}
    variant = Variant(112, 20, "fp32", checkpoint=source.record)
    ids = np.array([source.tokenizer.encode(words).ids for words in ("red circle", "ring")], np.int32)
    whole, half = (make_part("text_encoder", s.model, Style("explicit", "plain"), "fp32") for s in (source, again))
    export_onnx(half, variant.text_encoder, tmp_path / "model.onnx")
    found = onnx_session(tmp_path / "model.onnx")({"input_ids": ids})["text_features"]
    assert 0 < error(torch.from_numpy(found), whole(torch.from_numpy(ids))) < 2e-3


def test_the_text_encoder_apart_and_together_again(source, state, tmp_path):
    slim(Job(source, tmp_path / "without", apart=True))
    text = tmp_path / "without-text-encoder" / "text_encoder.safetensors"
    assert load_file(text).keys() == {name for name in state if name.startswith(TEXT)}
    assert weights_of(tmp_path / "without").keys() == {name for name in state if not name.startswith(TEXT)}
    with pytest.raises(CheckpointError, match=r"weights are missing: text_encoder.* put its text encoder beside it"):
        load(str(tmp_path / "without"))
    shutil.copy(text, tmp_path / "without")
    assert load(str(tmp_path / "without")).sha256 == source.sha256


def test_lite_text_is_slimmed_too(lite_folder, tmp_path):
    lite = load(str(lite_folder))
    report = slim(Job(lite, tmp_path / "half", "fp16", frames=drawn_frames(1, 112), resolution=112))
    assert report["same"]["cosine"] > 0.9999
    assert load(str(tmp_path / "half")).record.context_length == lite.record.context_length == 32


def test_what_was_written_wrongly_is_not_left(source, tmp_path, monkeypatch):
    """A disk that returns other bytes than were written."""
    write = slimming.layout.write_weights

    def damaged(path, weights):
        name = "mask_decoder.instance_projection.weight"
        write(path, {**weights, name: weights[name] + 1})

    monkeypatch.setattr(slimming.layout, "write_weights", damaged)
    with pytest.raises(SlimError, match=r"1 weights changed on their way, mask_decoder.instance_projection"):
        slim(Job(source, tmp_path / "stripped"))
    with pytest.raises(SlimError, match=r"fp16 does not find what fp32 finds: .*mask_head.*; try --dtype bf16"):
        slim(Job(source, tmp_path / "half", "fp16", frames=drawn_frames(1, 112), resolution=112))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(source, tmp_path):
    def interrupt(step):
        if step.startswith("reading it again"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slim(Job(source, tmp_path / "stripped", apart=True), interrupt)
    assert list(tmp_path.iterdir()) == []
    slim(Job(source, tmp_path / "stripped"))
    assert [path.name for path in tmp_path.iterdir()] == ["stripped"]


def run(capsys, *argv):
    status = main([str(word) for word in argv])
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_the_command(folder, tmp_path, capsys):
    status, result = run(capsys, "half", folder, tmp_path / "half", "--resolution", "112", "--frame-count", "1")
    assert (status, result["ok"], result["output"]) == (0, True, str(tmp_path / "half"))
    assert result["half"]["stayed_fp32"].keys() == {"vector", "boxes"}
    assert result["bytes_after"] < result["bytes_before"]
    status, result = run(capsys, "strip", folder, tmp_path / "two", "--without-text-encoder")
    assert result["bytes_text_encoder"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "two", "two-text-encoder"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param("half {folder} {folder}", "expected a folder that is not there yet", id="onto itself"),
        pytest.param("strip {folder} {folder}/slim", "expected a folder outside of the checkpoint", id="into itself"),
        pytest.param("strip {folder}/nowhere {out}", "which is no folder", id="no checkpoint"),
        pytest.param("half {folder} {out} --resolution 100", "multiple of 14, got 100", id="between two patches"),
        pytest.param("half {folder} {out} --frame-count 0", "weights are always compared", id="no frames"),
        pytest.param("half {folder} {out} --frames {folder}", "expected images", id="frames that are no images"),
        pytest.param("strip {folder} {out} --ema", "expected averaged weights (EMA)", id="no averages"),
        pytest.param("strip {folder} {out} --tokenizer {out}", "as tokenizer", id="no such tokenizer"),
    ],
)
def test_refusals_before_anything_is_written(folder, tmp_path, capsys, options, sentence):
    argv = options.format(folder=folder, out=tmp_path / "out").split()
    status, result = run(capsys, *argv)
    assert (status, result["ok"]) == (2, False)
    assert sentence in result["error"]
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in folder.parent.iterdir()) == ["small"]
