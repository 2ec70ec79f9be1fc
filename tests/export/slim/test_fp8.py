"""FP8 of the vision encoder in plain PyTorch: what E4M3 blocks compute, what a calibration measures, which blocks stay,
when a calibration is used again, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Sam3Model

from ensemble.gate.limits import limits_of
from ensemble.spec import Variant
from export import variant as exports
from export.checkpoint import Source
from export.engines.engine import EngineError, Tool
from export.engines.registry import ENGINES, ready
from export.fused.fp8_block import Fp8Block, Fp8Linear, Maxima
from export.fused.vision_encoder import FusedVisionEncoder
from export.manifest import recipe
from export.slim.calibration import FEWEST_FRAMES, FILE, MOST_FRAMES, Calibration, calibration_frames, digest
from export.slim.fp8 import calibrate, in_fp8, largest_inputs, measure, steps
from export.sub_models.parts import PARTS
from export.variant import Job, calibrated


def noise(count: int, resolution: int) -> list[np.ndarray]:
    rng = np.random.default_rng(resolution)
    return [rng.integers(0, 256, (3, resolution, resolution), np.uint8) for _ in range(count)]


def frames(resolution: int) -> list[torch.Tensor]:
    return [torch.from_numpy(frame) for frame in noise(2, resolution)]


@pytest.fixture(scope="module", params=[112, 126], ids=["windows fill the map", "windows are padded"])
def encoder(request: pytest.FixtureRequest, sized: Callable[[int], Sam3Model]) -> FusedVisionEncoder:
    return FusedVisionEncoder(sized(request.param), "plain").eval()


def resolution_of(encoder: FusedVisionEncoder) -> int:
    return encoder.order.patches * encoder.patch


def test_an_encoder_in_e4m3_is_off_by_its_rounding_alone(encoder: FusedVisionEncoder) -> None:
    """A wrong scale, order of channels or turn of positions would cost far more than three bits of mantissa do."""
    seen = frames(resolution_of(encoder))
    maxima, errors = measure(encoder, seen)
    assert all(0.001 < error < 0.05 for error in errors)
    found = in_fp8(copy.deepcopy(encoder), Calibration(maxima, errors, limit=1.0))
    assert all(isinstance(block, Fp8Block) for block in found.blocks)
    with torch.no_grad():
        for level, wanted in zip(found(torch.stack(seen)), encoder(torch.stack(seen)), strict=True):
            assert torch.cosine_similarity(level.flatten(), wanted.flatten(), 0) > 0.995


def test_maxima_are_the_largest_inputs_of_all_frames(encoder: FusedVisionEncoder) -> None:
    seen = frames(resolution_of(encoder))
    with torch.no_grad():
        single = [torch.stack([largest_inputs(*step) for step in steps(encoder, frame)]) for frame in seen]
        block, x, cos, sin = next(steps(encoder, seen[0]))
        given: list[torch.Tensor] = []
        handle = block.fc2.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        block(x, cos, sin)
        handle.remove()
    maxima, _ = measure(encoder, seen)
    found = torch.tensor([[m.qkv, m.output, m.fc1, m.fc2] for m in maxima])
    assert torch.allclose(found, torch.maximum(*single))
    assert single[0][0, 3] == pytest.approx(float(given[0].abs().max()))


@pytest.mark.parametrize(
    ("errors", "stay"),
    [
        pytest.param((0.01, 0.02, 0.05, 0.049), (), id="none above the limit"),
        pytest.param((0.2, 0.02, 0.05001, 0.01), (0, 2), id="two above it"),
        pytest.param((0.01, float("nan"), 0.01, float("inf")), (1, 3), id="not a number"),
    ],
)
def test_blocks_above_the_limit_stay_in_fp16(
    encoder: FusedVisionEncoder, errors: tuple[float, ...], stay: tuple[int, ...]
) -> None:
    calibration = Calibration((Maxima(4.0, 4.0, 4.0, 4.0),) * 4, errors)
    assert calibration.in_fp16 == stay
    blocks = in_fp8(copy.deepcopy(encoder), calibration).blocks
    assert tuple(n for n, block in enumerate(blocks) if not isinstance(block, Fp8Block)) == stay


def test_what_does_not_fit_together_is_refused(encoder: FusedVisionEncoder) -> None:
    with pytest.raises(ValueError, match="calibration of 4 blocks, got one of 1; it is of another checkpoint"):
        in_fp8(encoder, Calibration((Maxima(1.0, 1.0, 1.0, 1.0),), (0.01,)))
    with pytest.raises(
        ValueError, match="multiple of 16 channels, this checkpoint has one of 24; use --precision fp16"
    ):
        Fp8Linear(torch.nn.Linear(24, 8), 1.0)


def test_weights_and_activations_reach_the_largest_number(encoder: FusedVisionEncoder) -> None:
    layer = Fp8Linear(encoder.blocks[0].fc1, maximum=3.5)
    assert float(layer.weight.float().abs().max()) == 448.0
    largest = float(encoder.blocks[0].fc1.weight.abs().max())
    assert float(layer.scales[0]) == pytest.approx(3.5 / 448 * largest / 448)


# ---- the file
def test_a_calibration_is_what_was_written(tmp_path: Path) -> None:
    calibration = Calibration((Maxima(1.5, 2.0, 3.0, 4.0),) * 2, (0.01, 0.06), "ab", "cd")
    path = tmp_path / FILE
    assert Calibration.read(path) is None
    path.write_text(calibration.text())
    assert Calibration.read(path) == calibration
    assert json.loads(calibration.text())["in_fp16"] == [1]
    assert calibration.summary() == {"blocks_in_fp16": [1], "largest_error": 0.06, "limit": 0.05}


@pytest.mark.parametrize("text", ["", "{}", '{"maxima": [{"qkv": 1}]}', "[1]"], ids=["empty", "bare", "cut", "a list"])
def test_a_damaged_calibration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / FILE
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"expected a calibration .*{FILE}.*delete the file to calibrate again"):
        Calibration.read(path)


# ---- frames of the user's own
def pictures(folder: Path, count: int) -> Path:
    for n in range(count):
        Image.new("RGB", (8, 6), (n, 0, 0)).save(folder / f"{n:03}.png")
    return folder


@pytest.mark.parametrize(
    ("count", "taken", "first", "last"),
    [(FEWEST_FRAMES, FEWEST_FRAMES, 0, FEWEST_FRAMES - 1), (130, MOST_FRAMES, 0, 127)],
    ids=["the fewest", "spread over many"],
)
def test_frames_are_spread_over_the_folder(tmp_path: Path, count: int, taken: int, first: int, last: int) -> None:
    found = calibration_frames(pictures(tmp_path, count), 28)
    assert len(found) == taken
    assert [f.shape for f in found] == [(3, 28, 28)] * taken
    assert (int(found[0][0, 0, 0]), int(found[-1][0, 0, 0])) == (first, last)


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        pytest.param(0, r"at least 4 images .*found none; 16 to 64 frames of your own cameras", id="none"),
        pytest.param(3, r"at least 4 images .*found 3;", id="too few"),
    ],
)
def test_too_few_frames_are_refused(tmp_path: Path, count: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        calibration_frames(pictures(tmp_path, count), 28)
    with pytest.raises(ValueError, match="found none"):
        calibration_frames(tmp_path / "nowhere", 28)


@pytest.mark.parametrize(
    "content", [b"no picture", b"", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["text", "empty", "cut"]
)
def test_a_frame_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    pictures(tmp_path, 4)
    (tmp_path / "002.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"002\.png cannot be read .*take it out of the folder"):
        calibration_frames(tmp_path, 28)


# ---- in an export
@pytest.fixture
def job(source: Source, tmp_path: Path) -> Job:
    variant = Variant(112, source.record.num_queries, "fp8", checkpoint=source.record)
    return Job(source, variant, "aoti", tmp_path / "repository", (), calibration=noise(4, 112))


def test_a_calibration_is_used_again_until_something_changes(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Sequence[np.ndarray]] = []

    def counted(model: Sam3Model, checkpoint: str, seen: Sequence[np.ndarray], device: str) -> Calibration:
        made.append(seen)
        return Calibration((Maxima(1.0, 1.0, 1.0, 1.0),) * 4, (float(len(made)),) * 4, checkpoint, digest(seen))

    monkeypatch.setattr(exports, "calibrate", counted)
    quiet: Callable[[str], None] = lambda step: None  # noqa: E731
    first = calibrated(job, quiet)
    assert calibrated(job, quiet) == calibrated(replace(job, calibration=()), quiet) == first, "staged"
    published = job.root / job.variant.vision_encoder.name / "1" / FILE
    published.parent.mkdir(parents=True)
    (job.staged / FILE).rename(published)
    assert calibrated(replace(job, calibration=()), quiet) == first, "published"
    assert len(made) == 1
    other = calibrated(replace(job, calibration=noise(5, 112)), quiet)
    assert (len(made), other == first) == (2, False), "other frames"
    assert calibrated(replace(job, force=True), quiet) != first, "asked to build everything again"
    other_weights: Any = SimpleNamespace(part_sha256=lambda part: "other", model=job.source.model, name="other")
    calibrated(replace(job, source=other_weights, calibration=()), quiet)
    assert (len(made), len(made[-1])) == (4, 8), "another checkpoint, on drawn frames"


def test_the_same_frames_give_the_same_calibration(job: Job, sized: Callable[[int], Sam3Model]) -> None:
    first, second = (calibrate(sized(112), "", job.calibration[:2]) for _ in range(2))
    assert first.text() == second.text()


def test_only_the_vision_encoder_differs_from_fp16(source: Source) -> None:
    tool = Tool(ENGINES["aoti"], lambda *_: {}, lambda _: lambda arrays: {})
    calibrations = [Calibration((Maxima(v, v, v, v),) * 4, (0.01,) * 4) for v in (1.0, 2.0)]
    eight = Variant(112, 20, "fp8", checkpoint=source.record)
    for part in PARTS:
        first, second = (recipe(source, eight, part, tool, calibration=c.text()) for c in calibrations)
        assert (first == second) is (part != "vision_encoder")
        assert limits_of(eight, part).cosine == (0.995 if part == "vision_encoder" else 0.999)
    sixteen = Variant(112, 20, "fp16", checkpoint=source.record)
    assert recipe(source, eight, "text_encoder", tool) == recipe(source, sixteen, "text_encoder", tool)


# ---- what is refused
@pytest.mark.parametrize(
    ("capability", "name", "precision", "sentence"),
    [
        pytest.param((8, 0), "NVIDIA A100", "fp8", r"capability 8\.9 .*A100 has 8\.0; use --precision fp16", id="A100"),
        pytest.param((8, 6), "NVIDIA A10", "fp8", r"Ada, Hopper, Blackwell\), NVIDIA A10 has 8\.6", id="A10"),
        pytest.param((8, 0), "NVIDIA A100", "fp16", None, id="fp16 on an A100"),
        pytest.param((8, 9), "NVIDIA L4", "fp8", None, id="L4"),
        pytest.param((12, 0), "NVIDIA GeForce RTX 5090", "fp8", None, id="RTX 5090"),
    ],
)
def test_a_card_without_fp8_is_named(
    capability: tuple[int, int], name: str, precision: str, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    if sentence is None:
        assert ready("aoti", precision=precision).engine.spec.name == "aoti"
        return
    with pytest.raises(EngineError, match=sentence):
        ready("aoti", precision=precision)


@pytest.mark.parametrize(
    ("engine", "precision", "sentence"),
    [
        ("onnxruntime", "fp8", "engine onnxruntime makes fp32, fp16 or int8, got precision 'fp8'"),
        ("aoti", "int4", "engine aoti makes fp32, fp16 or fp8, got precision 'int4'"),
    ],
)
def test_an_engine_refuses_what_it_does_not_make(engine: str, precision: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ready(engine, precision=precision)
