"""Checkpoints that cannot be used: each is refused with a sentence that says what is wrong and what to do, and nothing
in a file is ever run."""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from export.checkpoint import CheckpointError, load
from export.cli import main
from tests.export.checkpoint.meta_files import meta_state

MODEL = "model.safetensors"
TEXT = "text_encoder.text_model.encoder.layers.1.mlp.fc1.weight"
NAN, INFINITE = float("nan"), float("inf")


def with_bytes(name, data):
    """A file of these bytes, made of the small checkpoint's own."""
    return lambda folder, state: (folder / name).write_bytes(data(save(state)) if callable(data) else data)


def with_state(change):
    """The small checkpoint's weights, changed in place or replaced."""

    def write(folder, state):
        state = {name: tensor.clone() for name, tensor in state.items()}
        changed = change(state)
        save_file(changed if isinstance(changed, dict) else state, folder / MODEL)

    return write


def with_config(**changes):
    """Whole weights, and a configuration with other numbers; `a__b` is b inside of a."""

    def write(folder, state):
        config = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *outer, last = path.split("__")
            inner = config
            for part in outer:
                inner = inner[part]
            inner[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        save_file(state, folder / MODEL)

    return write


def with_torch(data, name="pytorch_model.bin", **options):
    return lambda folder, state: torch.save(data(state) if callable(data) else data, folder / name, **options)


def torch_bytes(data):
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def with_index(listed, **files):
    """An index, and files of weights by their stems."""

    def write(folder, state):
        (folder / f"{MODEL}.index.json").write_text(json.dumps(listed(state)))
        for stem, names in files.items():
            save_file({name: state[name] for name in names(state)}, folder / f"{stem}.safetensors")

    return write


def whole(folder, state):
    save_file(state, folder / MODEL)


def with_file(name, text):
    def write(folder, state):
        whole(folder, state)
        (folder / name).write_text(text)

    return write


def archive(folder, state):
    np.savez(folder / "model.npz", a=np.ones(2))
    (folder / "model.npz").rename(folder / "pytorch_model.bin")


def script(folder, state):
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "pytorch_model.bin")


class Runs:
    """An object whose pickle runs a command when it is loaded as Python does."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


LAYER = "vision_encoder.backbone.layers.0.layer_norm1.weight"
HALF = {"first": lambda s: sorted(s)[::2], "second": lambda s: sorted(s)[1::2]}
BOTH = {"first": "first.safetensors", "second": "second.safetensors"}


def shared_index(state):
    listed = {name: BOTH[stem] for stem, names in HALF.items() for name in names(state)}
    return {"weight_map": listed}


FILES = [
    ("nothing at all", lambda f, s: None, ["expected config.json and *.safetensors", "save_pretrained"]),
    ("empty file", with_bytes(MODEL, b""), ["an empty file", "download it again"]),
    ("Git LFS pointer", with_bytes(MODEL, b"version https://git-lfs.github.com/spec/v1\noid"), ["git lfs pull"]),
    ("web page", with_bytes(MODEL, b"\n<!DOCTYPE html><html>"), ["a web page", "hf auth login"]),
    ("error as JSON", with_bytes(MODEL, b'{"error":"gated"}'), ['begins with b\'{"error":']),
    ("half downloaded", with_bytes(MODEL, lambda d: d[: len(d) // 2]), ["is cut off: its header promises", "bytes"]),
    ("header cut off", with_bytes(MODEL, lambda d: d[:100]), ["is cut off", "the file has 100"]),
    ("header damaged", with_bytes(MODEL, lambda d: d[:20] + b"\xff" * 20 + d[40:]), ["header is damaged"]),
    ("header of nonsense", with_bytes(MODEL, (2).to_bytes(8, "little") + b'{"'), ["header is damaged"]),
    ("header of a list", with_bytes(MODEL, (8).to_bytes(8, "little") + b'{"a":[]}'), ["header is damaged"]),
    ("bytes that nothing names", with_bytes(MODEL, lambda d: d + b"\0" * 64), ["safetensors cannot read it"]),
    ("rest never written", with_bytes(MODEL, lambda d: d[: -len(d) // 3] + b"\0" * (len(d) // 3 + 1)), ["all zero"]),
    ("GGUF", with_bytes("sam3.bin", b"GGUF\3\0\0\0" + b"\0" * 99), ["GGUF, which SAM3 is not read from"]),
    ("two letters of a zip", with_bytes("sam3.pt", b"PK"), ["so sam3.pt was read", "is cut off or damaged", "2 bytes"]),
    (
        "half a torch file",
        lambda f, s: (f / "sam3.pt").write_bytes(torch_bytes(s)[:-1000]),
        ["cut off or damaged", "download it again"],
    ),
    ("another archive", archive, ["that torch.save wrote, got an archive of a.npy"]),
    ("TorchScript", script, ["is a TorchScript program", "never loaded"]),
    ("a pickle that runs a command", with_torch({"model": Runs()}), ["holds Python objects", "system", "run code"]),
    (
        "the same, as torch wrote before 1.6",
        with_torch({"model": Runs()}, _use_new_zipfile_serialization=False),
        ["holds Python objects", "run code"],
    ),
    (
        "a training's options",
        with_torch(lambda s: {"model": s, "args": argparse.Namespace(lr=1e-4)}, "last.ckpt"),
        ["argparse.Namespace", "torch.save({'model': model.state_dict()}"],
    ),
    ("a pickle of nonsense", with_bytes("pytorch_model.bin", b"\x80\x02" + b"\x95" * 40), ["torch cannot read it"]),
    ("a list", with_torch(lambda s: [*s.values()]), ["expected a dictionary of weights, got list"]),
    ("an optimizer alone", with_torch({"optimizer": {"lr": 1.0}, "epoch": 3}), ["expected weights, found epoch, opt"]),
    ("nothing in it", with_torch({}), ["expected weights, found nothing"]),
    (
        "an adapter",
        lambda f, s: save_file({"a": torch.ones(1)}, f / "adapter_model.safetensors"),
        ["is an adapter (LoRA)", "merge_and_unload"],
    ),
    (
        "two files",
        lambda f, s: [save_file(s, f / f"{name}.safetensors") for name in ("best", "last")],
        ["expected one file of weights, found best.safetensors, last.safetensors"],
    ),
    ("index is no JSON", with_bytes(f"{MODEL}.index.json", b"{"), ["expected JSON"]),
    ("index without a map", with_index(lambda s: {"weight_map": []}), ["expected a weight_map"]),
    (
        "a file that is not there",
        with_index(shared_index, first=HALF["first"]),
        ["1 of 2 files of weights are missing (second.safetensors)"],
    ),
    (
        "a file elsewhere",
        with_index(lambda s: {"weight_map": {"a": "../other.safetensors"}}),
        ["outside of its folder (../other.safetensors)"],
    ),
    (
        "files of two versions",
        with_index(shared_index, first=HALF["first"], second=lambda s: sorted(s)[1:-2:2]),
        ["the index and its files disagree", "are not in the file that it names"],
    ),
    (
        "shards of which one is missing",
        lambda f, s: save_file(s, f / "model-00001-of-00002.safetensors"),
        ["1 of 2 files of weights are missing"],
    ),
]

WEIGHTS = [
    ("one missing", with_state(lambda s: s.pop(TEXT)), [f"1 weights are missing: {TEXT}", "incomplete"]),
    (
        "no text encoder",
        with_state(lambda s: {n: t for n, t in s.items() if not n.startswith("text_encoder")}),
        ["weights are missing: text_encoder.text_model", "and 3", "more"],
    ),
    (
        "renamed",
        with_state(lambda s: {n.replace("text_encoder", "text_tower"): t for n, t in s.items()}),
        ["are not known: text_tower", "are missing: text_encoder"],
    ),
    ("one too many", with_state(lambda s: s.update(extra=torch.ones(2))), ["1 weights are not known: extra"]),
    (
        "another shape",
        with_state(lambda s: s.update({TEXT: torch.ones(64, 64)})),
        [f"1 weights have another shape: {TEXT} 64x64 where the configuration says 128x64", "config.json"],
    ),
    ("whole numbers", with_state(lambda s: s.update({TEXT: s[TEXT].to(torch.int8)})), ["dtype", TEXT, "torch.int8"]),
    (
        "eight bits",
        with_state(lambda s: s.update({TEXT: s[TEXT].to(torch.float8_e4m3fn)})),
        ["1 weights have a dtype that holds no weights", "float8"],
    ),
    ("complex", with_state(lambda s: s.update({TEXT: s[TEXT].to(torch.complex64)})), ["holds no weights", "complex64"]),
    ("NaN", with_state(lambda s: s[LAYER].index_fill_(0, torch.tensor([3]), NAN)), ["NaN or infinity", LAYER]),
    (
        "infinity",
        with_state(lambda s: s[TEXT].view(-1)[:1].fill_(INFINITE)),
        ["1 weights hold NaN or infinity"],
    ),
    ("never written", with_state(lambda s: s[TEXT].zero_()), ["1 weights are all zero", TEXT]),
    (
        "twice",
        with_torch(lambda s: {**s, f"module.{TEXT}": s[TEXT]}),
        [f"1 weights are there twice: module.{TEXT} and {TEXT}"],
    ),
    (
        "another model",
        with_torch({"encoder.weight": torch.ones(2, 2)}),
        ["found those of another model: encoder.weight"],
    ),
    (
        "SAM3-LiteText of its authors",
        with_torch({"detector.backbone.language_backbone.encoder.transformer.0.x": torch.ones(2)}),
        ["SAM3-LiteText in its authors' layout", "transformers version"],
    ),
]

CONFIGURATIONS = [
    ("of another model", with_config(model_type="clip"), ["expected a checkpoint of type sam3, sam3_video", "'clip'"]),
    ("without a model", with_config(model_type=None), ["expected config.json with a model_type"]),
    ("cut off", with_file("config.json", '{"model_type": '), ["expected JSON"]),
    ("a list", with_file("config.json", "[]"), ["expected a JSON object, got list"]),
    (
        "words for numbers",
        with_config(detr_decoder_config__num_queries="many"),
        ["transformers cannot read it", "num_q"],
    ),
    (
        "no queries",
        with_config(detr_decoder_config__num_queries=0),
        ["num_queries is 0, expected one number from 1 on"],
    ),
    (
        "two image sizes",
        with_config(vision_config__backbone_config__image_size=[112, 140]),
        ["image_size is [112, 140], expected one number"],
    ),
    (
        "size between two patches",
        with_config(vision_config__backbone_config__image_size=120),
        ["image_size 120 is no multiple of patch_size 14"],
    ),
    (
        "heads that do not divide",
        with_config(vision_config__backbone_config__num_attention_heads=5),
        ["trunk: width 64 does not divide into 5 heads of a multiple of 4"],
    ),
    (
        "global layers beyond the trunk",
        with_config(vision_config__backbone_config__global_attn_indexes=[1, 7]),
        ["global_attn_indexes [7] are beyond the trunk's 4 layers"],
    ),
    ("parts of two widths", with_config(vision_config__fpn_hidden_size=32), ["are [32, 64] wide, expected one width"]),
    ("another pyramid", with_config(vision_config__scale_factors=[2.0, 1.0, 0.5]), ["expected [4.0, 2.0, 1.0, 0.5]"]),
    (
        "another trunk",
        with_config(vision_config__backbone_config__model_type="vit"),
        ["the trunk is 'vit', expected 'sam3_vit_model'"],
    ),
    ("of another checkpoint", with_config(text_config__intermediate_size=96), ["6 weights have another shape"]),
    ("with more layers", with_config(detr_encoder_config__num_layers=3), ["are missing: detr_encoder.layers.2."]),
    ("with fewer layers", with_config(detr_encoder_config__num_layers=1), ["are not known: detr_encoder.layers.1."]),
    (
        "pictures prepared otherwise",
        with_file("processor_config.json", '{"image_processor": {"image_mean": [0.485, 0.456, 0.406]}}'),
        ["image_mean is [0.485, 0.456, 0.406], expected [0.5, 0.5, 0.5]"],
    ),
]


def table(*rows):
    return [pytest.param(write, words, id=label) for label, write, words in rows]


@pytest.mark.parametrize(("write", "words"), table(*FILES, *WEIGHTS, *CONFIGURATIONS))
def test_refusals_say_what_is_wrong(bare_folder, state, monkeypatch, write, words):
    monkeypatch.chdir(bare_folder)
    write(bare_folder, state)
    with pytest.raises(CheckpointError) as caught:
        load(str(bare_folder))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("was_run").exists()


def test_averages_that_are_not_there(bare_folder, state):
    torch.save({"model": state, "ema": {"shadow_params": [*state.values()]}}, bare_folder / "last.pt")
    with pytest.raises(CheckpointError, match=r"expected averaged weights \(EMA\) with a name each.* found model"):
        load(str(bare_folder), ema=True)


def test_metas_file_of_another_size_without_a_configuration(bare_folder, state):
    """Numbers that weights do not tell are those of the released model, so this one needs its config.json."""
    torch.save(meta_state(state), bare_folder / "sam3.pt")
    (bare_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"have another shape: .* the config.json beside the weights"):
        load(str(bare_folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("sam3.pt", "which is no folder", id="a file that is not there"),
        pytest.param("~/nowhere/sam3", "which is no folder", id="a folder that is not there"),
        pytest.param("", "which is no folder", id="nothing"),
    ],
)
def test_names_that_lead_nowhere(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        load(name)


@pytest.mark.parametrize("name", ["model.safetensors", "sam3.pt"])
def test_the_command_refuses_and_writes_nothing(bare_folder, tmp_path, capsys, name):
    (bare_folder / name).write_bytes(b"PK")
    argv = ["--checkpoint", str(bare_folder), "--resolution", "112", "--repository", str(tmp_path / "repository")]
    assert main(argv) == 2
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["ok"] is False
    assert name in result["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
