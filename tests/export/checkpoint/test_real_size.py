"""The table of names at the real size, without a weight in memory: each weight of `Sam3Model` comes from exactly one of
Meta's, whose names and shapes are those of Meta's published code."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import Sam3Config, Sam3Model
from transformers.initialization import no_init_weights

from export.checkpoint.configuration import told_by_weights
from export.checkpoint.layouts import not_used, translated
from export.checkpoint.training import bare
from tests.export.checkpoint import meta_files


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"), no_init_weights():
        return Sam3Model._from_config(Sam3Config()).state_dict()


@pytest.fixture(scope="module")
def metas(model):
    """The state of Meta's image model."""
    with torch.device("meta"):
        rest = meta_files.tables_and_points(32, (7, 15, 23, 31), (24, 72), 64, 256)
        return {**meta_files.meta_state(model), **rest}


def test_what_the_tests_write_is_what_metas_code_loads(metas):
    assert len(metas) == meta_files.NAMES
    assert meta_files.fingerprint((name, tensor.shape) for name, tensor in metas.items()) == meta_files.SHA256


@pytest.mark.parametrize("prefix", ["", "detector.", "module.detector.", "_orig_mod.sam3_model."])
def test_every_weight_is_hit_once(model, metas, prefix):
    kept = {f"{prefix}{name}": tensor for name, tensor in metas.items() if not not_used(bare(f"{prefix}{name}"))}
    found = list(translated(kept, "meta"))
    assert Counter(weight.name for weight in found) == Counter(model.keys())
    assert all(weight.tensor.shape == model[weight.name].shape for weight in found)
    assert len(metas) - len(kept) == 32 + 6  # rotary tables, points
    assert len(found) == 1468


def test_sizes_that_differ_between_files_are_read_from_the_weights(metas):
    weights = {weight.name: weight.tensor for weight in translated(metas, "meta")}
    assert told_by_weights(weights).to_dict() == Sam3Config().to_dict()
    weights["detr_decoder.query_embed.weight"] = torch.empty(300, 256, device="meta")
    weights["text_encoder.text_projection.weight"] = torch.empty(1024, 1024, device="meta")
    config = told_by_weights(weights)
    assert (config.detr_decoder_config.num_queries, config.text_config.projection_dim) == (300, 1024)
