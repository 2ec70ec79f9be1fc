"""The tracker's training: a run from start to file, and on from there."""

import json

import torch
from safetensors.torch import load_file

from export.tiny.video import train
from export.tiny.video.configuration import WEIGHTS_FILE, random_video_model
from export.tiny.video.train import roughened


@torch.enable_grad()  # the room's tests compute without gradients otherwise
def test_a_run_can_be_continued(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "RESOLUTION_WEIGHTS", (0, 0, 0, 1))
    monkeypatch.setattr(train, "STAGES", ((0.5, 2), (1.0, 3)))
    short = ["--steps", "3", "--clips", "1", "--workers", "0", "--device", "cpu"]
    curve = train.main([*short, "--output", str(tmp_path / "first")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["last"]["step"] == 3
    assert curve["points"][-1]["frames"] == 3
    first = load_file(tmp_path / "first" / WEIGHTS_FILE)
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in first.values())
    train.main([*short, "--start-from", str(tmp_path / "first"), "--output", str(tmp_path / "second")])
    second, fresh = load_file(tmp_path / "second" / WEIGHTS_FILE), random_video_model().state_dict()
    changed = [name for name, value in second.items() if (value != first[name]).any()]
    assert any("memory_attention" in name for name in changed)
    assert all(name in fresh for name in second)


def test_rough_masks_are_others_and_never_empty():
    torch.manual_seed(0)
    masks = torch.zeros(20, 40, 40)
    masks[:, 10:20, 10:24] = 1
    masks[0] = 0
    masks[0, 5, 5] = 1
    rough = roughened(masks, 1.0)
    assert set(rough.unique().tolist()) <= {0.0, 1.0}
    assert (rough.flatten(1).sum(1) > 0).all()
    assert ((rough - masks).abs().flatten(1).sum(1) > 0).sum() >= 15
    torch.testing.assert_close(roughened(masks, 0.0), masks)
