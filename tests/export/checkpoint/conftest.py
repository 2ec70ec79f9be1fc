"""A folder to write checkpoints in: configuration and tokenizer of the small random one, without its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def bare_folder(folder: Path, tmp_path: Path) -> Path:
    """The small checkpoint without weights."""
    return Path(shutil.copytree(folder, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors")))
