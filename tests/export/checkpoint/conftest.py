"""Folders to write checkpoints in: the configuration and the tokenizer of the small random one, without its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch import Tensor
from transformers import Sam3LiteTextConfig

from export.checkpoint import Source, random_source


@pytest.fixture
def bare_folder(folder: Path, tmp_path: Path) -> Path:
    """The small checkpoint without weights."""
    return Path(shutil.copytree(folder, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture(scope="session")
def state(source: Source) -> dict[str, Tensor]:
    """The weights of the small random checkpoint."""
    return dict(source.model.state_dict())


@pytest.fixture(scope="session")
def lite_folder(folder: Path, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random SAM3-LiteText: everything but the text encoder has the sizes of the small checkpoint. Its table of
    positions is longer than the tokenizer's 32 tokens."""
    path = tmp_path_factory.mktemp("checkpoints") / "lite"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors"))
    same = source.model.config.to_dict()
    text = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, projection_dim=64)
    text |= dict(max_position_embeddings=40, vocab_size=source.record.vocabulary_size, repmixer_kernel_size=5)
    parts = {name: part for name, part in same.items() if name.endswith("_config") and name != "text_config"}
    for name, part in parts.items():
        if "model_type" in part and name != "vision_config":
            parts[name] = part | {"model_type": part["model_type"].replace("sam3", "sam3_lite_text")}
    model = random_source(Sam3LiteTextConfig(text_config=text, **parts), seed=1).model
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):  # batch statistics that are not those of a new layer
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.5)
    model.save_pretrained(path)
    return path
