"""What fp8 weights take of a GPU: a byte for each that is stored in E4M3, and what a server with them was measured to
take."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ensemble.server.architecture import SAM3, Architecture
from ensemble.server.memory import weight_bytes
from export.fused.fp8_block import Fp8Block, Maxima
from export.fused.vision_encoder import FusedVisionEncoder
from export.tiny.predictor import load_model
from perf import results
from perf.capacity.advice import MODELLED, Requirements, recommend
from perf.capacity.evidence import RESULTS, fp8_share, gather, packages_mb


def test_what_is_counted_at_one_byte_is_what_is_stored_in_one(checkpoint):
    model, _ = load_model(checkpoint, 140)
    blocks = [Fp8Block(block, Maxima(1.0, 1.0, 1.0, 1.0)) for block in FusedVisionEncoder(model, "plain").blocks]
    stored = [t for block in blocks for t in block.buffers() if t.dtype == torch.float8_e4m3fn]
    sizes = model.config.vision_config.backbone_config
    small = Architecture(width=sizes.hidden_size, layers=sizes.num_hidden_layers, mlp=sizes.intermediate_size)
    assert weight_bytes(small) - weight_bytes(small, precision="fp8") == sum(t.numel() for t in stored) > 0
    assert weight_bytes(small, 4) - weight_bytes(small, 4, "fp8") == 3 * sum(t.numel() for t in stored)


def test_a_server_in_fp8_takes_what_was_measured_within_a_tenth():
    rows = [row for row in results.load(RESULTS / "h200" / "fp8.json")["rows"] if row["precision"] == "fp8"]
    assert {row["resolution"] for row in rows} == {1008, 672}
    for row in rows:
        reckoned = packages_mb(SAM3, row["resolution"], row["cameras"], row["classes"], precision="fp8")
        assert reckoned == pytest.approx(row["peak_mb"], rel=0.1)


def test_capacity_reckons_with_fp8_beside_what_was_measured_in_fp16():
    """Frames a second by the ratio of the measured servers, memory by the weights that take a byte; both modelled."""
    asked = Requirements(8, 8 * 1024, fps=4, engine="aoti", resolutions=(1008, 672))
    evidence = gather(["h200"], [])
    whole = {choice.resolution: choice for choice in recommend(asked, evidence)}
    eights = {choice.resolution: choice for choice in recommend(replace(asked, precision="fp8"), evidence)}
    rows = {(row["resolution"], row["precision"]): row for row in results.load(RESULTS / "h200" / "fp8.json")["rows"]}
    for resolution, choice in eights.items():
        ratio = rows[resolution, "fp8"]["fps"] / rows[resolution, "fp16"]["fps"]
        assert choice.fps_per_camera.value == pytest.approx(whole[resolution].fps_per_camera.value * ratio)
        assert choice.p95_ms.value == pytest.approx(whole[resolution].p95_ms.value / ratio)
        saved = (weight_bytes(SAM3) - weight_bytes(SAM3, precision="fp8")) / 2**20
        assert whole[resolution].memory_mb.value - choice.memory_mb.value == pytest.approx(saved, rel=0.01)
        assert choice.fps_per_camera.basis == choice.memory_mb.basis == MODELLED
    with pytest.raises(ValueError, match="precision must be one of fp16, fp8, got 'int8'"):
        replace(asked, precision="int8")


def test_what_was_measured_in_fp8_is_not_sped_up_again(tmp_path):
    """A sweep of a server in fp8 answers for fp8 as it was measured, and for fp16 by the same ratio the other way."""
    sweep = json.loads((RESULTS / "h200" / "sweep.json").read_text())
    sweep["setting"]["precision"] = "fp8"
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(sweep))
    asked = Requirements(8, 8 * 1024, fps=4, resolutions=(1008,))
    (measured,) = recommend(asked, gather(["h200"], []))
    (same,) = recommend(replace(asked, precision="fp8"), gather([], [path]))
    (other,) = recommend(asked, gather([], [path]))
    assert same.fps_per_camera.value == measured.fps_per_camera.value
    assert same.fps_per_camera.basis == measured.fps_per_camera.basis != MODELLED
    assert other.fps_per_camera.value == pytest.approx(measured.fps_per_camera.value * fp8_share(1008))
    assert other.fps_per_camera.basis == MODELLED
