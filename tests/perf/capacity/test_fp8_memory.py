"""What fp8 weights take of a GPU: a byte for each that is stored in E4M3, and what a server with them was measured to
take."""

from __future__ import annotations

import pytest
import torch

from ensemble.server.architecture import SAM3, Architecture
from ensemble.server.memory import weight_bytes
from export.fused.fp8_block import Fp8Block, Maxima
from export.fused.vision_encoder import FusedVisionEncoder
from export.tiny.predictor import load_model
from perf import results
from perf.capacity.evidence import RESULTS, packages_mb


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
