"""Recovery: the loss says 0 for the teacher itself, falls within a few steps, and what was learnt is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from export.checkpoint import load
from export.slim.blocks import without_blocks
from export.slim.cli import main
from export.slim.cost import output_error
from export.slim.distil import distillation
from export.slim.lessons import Lessons, frames_in, loader
from export.slim.recover import Recipe, Sized, recover

SIZE = 56  # pixels a side; enough to learn from, and quick


@pytest.fixture(scope="module")
def trained(checkpoint):
    return load(str(checkpoint))


@pytest.fixture(scope="module")
def lessons(trained):
    return Lessons(trained.tokenizer, 2, [SIZE], [1.0], seed=5)


def test_batches_repeat_and_differ_by_seed(trained, lessons):
    first, again = next(loader(lessons, 0)), next(loader(lessons, 0))
    other = next(loader(Lessons(trained.tokenizer, 2, [SIZE], [1.0], seed=6), 0))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.pixels, other.pixels)
    assert first.pixels.shape == (2, SIZE, SIZE, 3)


def test_the_loss_is_zero_for_the_teacher_and_grows_with_what_is_missing(trained, lessons):
    whole = Sized(trained.model, [SIZE], torch.device("cpu"))
    batch = next(loader(lessons, 0))
    truth = whole(batch)
    same = distillation(whole(batch), truth)
    assert all(abs(float(value)) < 1e-2 for value in same.values())
    _, cost = output_error(trained.model, loader(lessons, 0), 1, [SIZE], "cpu")
    one, two = (cost(without_blocks(trained.model, dropped)) for dropped in ([6], [6, 0]))
    assert 0.1 < one < two


def test_a_student_learns_from_a_few_steps(trained, lessons):
    student = without_blocks(trained.model, [4, 6])
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    recipe = Recipe(steps=6, learning_rate=1e-4, warm_up=2, truth=0.1)
    learnt, report = recover({"it": student}, trained.model, loader(lessons, 0), [SIZE], "cpu", recipe)
    assert report["loss_after"]["it"]["loss"] < 0.97 * report["loss_before"]["it"]["loss"]
    assert report["steps"] == 6
    assert report["curve"][-1]["step"] == 6
    found, began = learnt["it"].state_dict(), student.state_dict()
    moved = {name.split(".")[0] for name, tensor in found.items() if not torch.equal(tensor, began[name])}
    assert "vision_encoder" in moved
    assert "text_encoder" not in moved
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())
    assert learnt["it"].config.vision_config.image_size == trained.model.config.vision_config.image_size


def test_the_command_writes_what_was_learnt(checkpoint, tmp_path, capsys):
    dropped, target = tmp_path / "dropped", tmp_path / "recovered"
    assert main(["drop-blocks", str(checkpoint), str(dropped), "--blocks", "4", "6", "--frame-count", "1"]) == 0
    capsys.readouterr()
    options = f"--steps 4 --warm-up 2 --learning-rate 1e-4 --batch 2 --workers 0 --resolution {SIZE} --frame-count 1"
    assert main(["recover", str(dropped), str(checkpoint), str(target), *options.split()]) == 0
    told = json.loads(capsys.readouterr().out)["recovered"]
    assert told["loss_after"]["loss"] < told["loss_before"]["loss"]
    assert told["resolutions"] == [SIZE]
    source = load(str(target))
    assert source.model.config.vision_config.backbone_config.num_hidden_layers == 6
    assert source.record.image_size == 252
    assert main(["recover", str(dropped), str(checkpoint), str(target), *options.split()]) == 2
    assert "not there yet" in json.loads(capsys.readouterr().out)["error"]


def test_own_frames_are_shown_with_their_words(trained, tmp_path):
    for n in range(3):
        Image.fromarray(np.full((40, 60, 3), 40 * n, np.uint8)).save(tmp_path / f"{n}.png")
    shown = Lessons(trained.tokenizer, 2, [SIZE], [1.0], frames=frames_in(tmp_path), words=["red circle", "ring"])
    batch = next(loader(shown, 0))
    assert batch.pixels.shape == (2, SIZE, SIZE, 3)
    words = {tuple(trained.tokenizer.encode(word).ids) for word in ("red circle", "ring")}
    assert {tuple(ids.tolist()) for ids in batch.input_ids.flatten(0, 1)} <= words
    whole = Sized(trained.model, [SIZE], torch.device("cpu"))
    other = Sized(without_blocks(trained.model, [4]), [SIZE], torch.device("cpu"))
    assert float(distillation(other(batch), whole(batch))["loss"]) > 0.05
    (tmp_path / "3.png").write_bytes(b"no image")
    broken = Lessons(trained.tokenizer, 4, [SIZE], [1.0], frames=frames_in(tmp_path), words=["ring"])
    with pytest.raises(ValueError, match=r"3\.png cannot be read"):
        next(loader(broken, 0))


def test_a_teacher_of_another_kind_is_refused(checkpoint, folder, tmp_path, capsys):
    assert main(["recover", str(folder), str(checkpoint), str(tmp_path / "new"), "--workers", "0"]) == 2
    assert "expected the teacher's 50 queries, got 20" in json.loads(capsys.readouterr().out)["error"]
    assert main(["recover", str(folder), str(checkpoint), str(tmp_path / "new"), "--device", "cuda"]) == 2
    assert "expected a GPU" in json.loads(capsys.readouterr().out)["error"]
