"""The same weights in every shape that checkpoints come in: loading gives them back bit for bit, and the account says
what else was there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Sam3Model, Sam3VideoConfig

from export.checkpoint import load
from tests.export.checkpoint.meta_files import meta_state, tables_and_points

State = dict[str, Tensor]
PYRAMID = "vision_encoder.neck.fpn_layers.3."
MOMENTS = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}


def metas(state: State, prefix: str = "detector.") -> State:
    """The detector as in Meta's files: 4 layers, 1 and 3 global, windows of 4 patches, images of 8."""
    whole = {**meta_state(state), **tables_and_points(4, (1, 3), (4, 8), 16, 64)}
    return {f"{prefix}{name}": tensor for name, tensor in whole.items()}


def necks(state: State, *names: str) -> State:
    """Copies of the detector's feature pyramid for the tracker."""
    convs = ".convs."
    return {k.replace(convs, f".{n}_convs."): v for n in names for k, v in metas(state).items() if convs in k}


def tracker(prefix: str) -> State:
    return {f"{prefix}maskmem_tpos_enc": torch.ones(7, 1, 1, 64), f"{prefix}mask_downsample.weight": torch.ones(1)}


def in_front(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def moved(state: State) -> State:
    """Other weights under the same names."""
    return {name: tensor + 1 for name, tensor in state.items()}


# ---- transformers' folders
def one_file(folder: Path, state: State) -> Path:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sharded(folder: Path, state: State, safe: bool = True, index: bool = True) -> Path:
    names = sorted(state)
    parts = [names[i::3] for i in range(3)]
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    listed = {}
    for n, part in enumerate(parts, 1):
        file = f"{stem}-{n:05}-of-00003.{suffix}"
        write = save_file if safe else torch.save
        write({name: state[name] for name in part}, folder / file)
        listed |= dict.fromkeys(part, file)
    if index:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder


def saved(path: str, data: Callable[[State], object], whole_folder: bool = True, **options) -> Callable:
    """A writer of what torch.save makes of `data`; the path to load is the folder or the file."""

    def write(folder: Path, state: State) -> Path:
        torch.save(data(state), folder / path, **options)
        return folder if whole_folder else folder / path

    return write


def video_folder(folder: Path, state: State) -> Path:
    config = Sam3VideoConfig(detector_config=json.loads((folder / "config.json").read_text()))
    config.save_pretrained(folder)
    others = {**in_front("tracker_model.", {"no_memory_embedding": torch.ones(1, 1, 64)})}
    others |= in_front("tracker_neck.", {"fpn_layers.0.proj1.weight": torch.ones(64, 64, 1, 1)})
    return one_file(folder, {**in_front("detector_model.", state), **others})


def text_encoder_apart(folder: Path, state: State) -> Path:
    text = {name: tensor for name, tensor in state.items() if name.startswith("text_")}
    save_file(text, folder / "text_encoder.safetensors")
    return one_file(folder, {name: tensor for name, tensor in state.items() if name not in text})


def meta_safetensors(folder: Path, state: State) -> Path:
    save_file({k: v for k, v in metas(state).items() if not v.is_complex()}, folder / "sam3.safetensors")
    return folder / "sam3.safetensors"


# ---- what a training saves
def compiled(state: State) -> State:
    return {
        f"_orig_mod.{name.replace('layers.', 'layers._checkpoint_wrapped_module.', 1)}": state[name] for name in state
    }


TABLES, POINTS = {"rotary tables": 4}, {"point and mask prompts": 6}
TRACKER = "the tracker of a video model"
NECKS = "feature pyramids of the tracker"


def training(entry: str, averaged: Callable[[State], object]) -> Callable[[State], object]:
    return lambda state: {"model": moved(state), entry: averaged(state), "optimizer": MOMENTS, "epoch": 7}


@pytest.mark.parametrize(
    ("write", "unused"),
    [
        pytest.param(one_file, {}, id="save_pretrained"),
        pytest.param(sharded, {}, id="shards with an index"),
        pytest.param(lambda f, s: sharded(f, s, index=False), {}, id="shards without an index"),
        pytest.param(saved("pytorch_model.bin", dict), {}, id="pytorch_model.bin"),
        pytest.param(lambda f, s: sharded(f, s, safe=False), {}, id="sharded pytorch_model.bin"),
        pytest.param(
            saved("pytorch_model.bin", dict, _use_new_zipfile_serialization=False), {}, id="torch's file before 1.6"
        ),
        pytest.param(saved("best.ckpt", dict), {}, id="any name beside config.json"),
        pytest.param(text_encoder_apart, {}, id="text encoder in a file of its own"),
        pytest.param(video_folder, {TRACKER: 2}, id="video model"),
        pytest.param(
            saved("sam3.pt", lambda s: {"model": {**metas(s), **necks(s, "sam2"), **tracker("tracker.")}}, False),
            {**TABLES, **POINTS, NECKS: 22, TRACKER: 2},
            id="Meta's sam3.pt",
        ),
        pytest.param(saved("sam3.pt", lambda s: metas(s, "")), {**TABLES, **POINTS}, id="Meta's image model"),
        pytest.param(
            saved("x.pt", lambda s: {**metas(s, "sam3_model."), **tracker("sam2_predictor.model.")}, False),
            {**TABLES, **POINTS, TRACKER: 2},
            id="Meta's names before the release",
        ),
        pytest.param(meta_safetensors, POINTS, id="Meta's names in safetensors"),
        pytest.param(
            saved("last.pt", lambda s: {"model": s, "optimizer": MOMENTS, "scheduler": {"step": 9}, "epoch": 3}),
            {},
            id="with optimizer and scheduler",
        ),
        pytest.param(
            saved("last.ckpt", lambda s: {"state_dict": {**in_front("model.", s), "criterion.weight": torch.ones(2)}}),
            {"losses and matchers": 1},
            id="Lightning",
        ),
        pytest.param(saved("last.pt", lambda s: in_front("module.", s)), {}, id="parallel training"),
        pytest.param(saved("last.pt", compiled), {}, id="compiled, activations checkpointed"),
        pytest.param(
            saved("last.pt", lambda s: {"model": in_front("module._orig_mod.", metas(s))}),
            {**TABLES, **POINTS},
            id="Meta's names, compiled, in parallel",
        ),
        pytest.param(saved("last.pt", lambda s: {"model": s, "ema": moved(s)}), {}, id="not the average"),
        pytest.param(saved("last.pt", lambda s: {"ema": {"module": s, "decay": 0.999}}), {}, id="only the average"),
    ],
)
def test_the_same_weights(bare_folder, state, write, unused):
    source = load(str(write(bare_folder, state)))
    assert isinstance(source.model, Sam3Model)
    found = source.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert source.account.unused == unused
    assert source.account.used == len(state)
    assert source.account.absent == {}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(training("ema", dict), id="ema"),
        pytest.param(training("model_ema", dict), id="model_ema"),
        pytest.param(training("ema", lambda s: {"module": in_front("module.", s), "n_averaged": 5}), id="nested"),
        pytest.param(training("ema_model", lambda s: {"state_dict": metas(s)}), id="Meta's names"),
        pytest.param(lambda s: {**moved(s), **in_front("ema_model.", s)}, id="prefix"),
        pytest.param(
            lambda s: {"state_dict": {**in_front("model.", moved(s)), **in_front("model_ema.", s)}}, id="Lightning"
        ),
    ],
)
def test_averaged_weights_are_taken_where_asked(bare_folder, state, data):
    torch.save(data(state), bare_folder / "last.pt")
    averaged, plain = (load(str(bare_folder), ema=ema) for ema in (True, False))
    assert all(torch.equal(tensor, state[name]) for name, tensor in averaged.model.state_dict().items())
    assert all(torch.equal(tensor, state[name] + 1) for name, tensor in plain.model.state_dict().items())
    assert "took the averaged weights (EMA) under" in " ".join(averaged.account.notes)
    assert "not taken: " in " ".join(plain.account.notes)


def test_sam3_1_has_three_levels_and_three_pyramids(bare_folder, state):
    """The fourth level is missing in the file, and no output depends on it."""
    detector = {name: tensor for name, tensor in metas(state).items() if ".convs.3." not in name}
    data = {**detector, **necks(state, "interactive", "propagation"), **tracker("tracker.model.")}
    torch.save(data, bare_folder / "sam3.1_multiplex.pt")
    source = load(str(bare_folder / "sam3.1_multiplex.pt"))
    found = source.model.state_dict()
    assert all(torch.equal(found[n], torch.zeros_like(t) if PYRAMID in n else t) for n, t in state.items())
    assert source.account.unused == {**TABLES, **POINTS, NECKS: 44, TRACKER: 2}
    assert source.account.absent == {"the last level of the feature pyramid": 4}
    assert "4 not in the file, and not needed: the last level of the feature pyramid" in source.account.sentences()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_become_fp32_and_positions_stay_exact(bare_folder, source, state, dtype):
    config = json.loads((bare_folder / "config.json").read_text())
    (bare_folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    loaded = load(str(one_file(bare_folder, {name: tensor.to(dtype) for name, tensor in state.items()})))
    assert loaded.account.dtypes == {str(dtype).removeprefix("torch."): len(state)}
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, state[name].to(dtype).float())
    tables = dict(source.model.named_buffers())
    for name, buffer in loaded.model.named_buffers():
        assert torch.equal(buffer, tables[name]), name


def test_a_hub_name_is_downloaded(monkeypatch, folder, source):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("export.checkpoint.hub.snapshot_download", snapshot_download)
    loaded = load("somebody/finetuned")
    assert loaded.sha256 == source.sha256
    assert loaded.name == "somebody/finetuned"
    assert [name for name, _ in asked] == ["somebody/finetuned"]  # no second call for other kinds of files
    assert "*.safetensors" in asked[0][1]
    assert "*.pt" not in asked[0][1]


def test_a_hub_name_with_metas_file_alone(monkeypatch, bare_folder, state):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        if allow_patterns == ["*.pt"]:
            torch.save(metas(state), bare_folder / "sam3.1_multiplex.pt")
        return str(bare_folder)

    monkeypatch.setattr("export.checkpoint.hub.snapshot_download", snapshot_download)
    assert load("facebook/sam3.1").account.used == len(state)
    assert len(asked) == 3
