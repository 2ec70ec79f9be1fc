"""How tests of refused checkpoints are written as tables: rows of a label, what is written into a folder, and the words
that the refusal must have."""

from __future__ import annotations

import pytest
import torch

from export.checkpoint import CheckpointError, load

MODEL = "model.safetensors"


def table(*rows):
    """(label, write, words) as parameters of a test."""
    return [pytest.param(write, words, id=label) for label, write, words in rows]


def refusal(folder, state, write, words):
    """Writes into the folder, and asserts that loading it is refused in one line with all of the words."""
    write(folder, state)
    with pytest.raises(CheckpointError) as caught:
        load(str(folder))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def with_torch(data, name="pytorch_model.bin", **options):
    """A file that torch.save makes of `data`, or of what it makes of the weights."""
    return lambda folder, state: torch.save(data(state) if callable(data) else data, folder / name, **options)
