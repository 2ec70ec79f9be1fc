"""Files that hold no weights, not all of them, or more than weights: each is refused with a sentence that says what is
wrong and what to do, and nothing in a file is ever run."""

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
from tests.export.checkpoint.refusals import MODEL, refusal, table, with_torch


def with_bytes(name, data):
    """A file of these bytes, made of the small checkpoint's own."""
    return lambda folder, state: (folder / name).write_bytes(data(save(state)) if callable(data) else data)


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


def archive(folder, state):
    np.savez(folder / "model.npz", a=np.ones(2))
    (folder / "model.npz").rename(folder / "pytorch_model.bin")


def script(folder, state):
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "pytorch_model.bin")


class Runs:
    """An object whose pickle runs a command when it is loaded as Python does."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


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


@pytest.mark.parametrize(("write", "words"), table(*FILES))
def test_refusals_say_what_is_wrong(bare_folder, state, monkeypatch, write, words):
    monkeypatch.chdir(bare_folder)
    refusal(bare_folder, state, write, words)
    assert not Path("was_run").exists()


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
