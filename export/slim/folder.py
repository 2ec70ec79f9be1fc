"""Writes a checkpoint's weights as a folder in transformers' layout: all of it, or nothing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Sam3ImageProcessor, Sam3Processor

from export.checkpoint import Source
from export.checkpoint.preprocessing import FILES
from export.checkpoint.source import PART_WEIGHTS
from export.checkpoint.tokenizer import load_tokenizer

WEIGHTS = "model.safetensors"
REPORT = "slim.json"
"""What was done and what it cost, beside the weights."""


def check_target(target: Path, source: Path | None) -> None:
    """Raises ValueError where a folder cannot be written without touching what is there."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"expected a folder that is not there yet, got {target}, which is; name another, or remove it")
    if source and source.is_dir() and source.resolve() in target.resolve().parents:
        raise ValueError(f"expected a folder outside of the checkpoint, got {target} inside of {source}; name another")


def text_folder(target: Path) -> Path:
    """Where the text encoder of `target` goes if it is written apart."""
    return target.with_name(f"{target.name}-text-encoder")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end of the block, and is removed if the block fails."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def parted(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All weights but the text encoder's, and the text encoder's."""
    text = {name: tensor for name, tensor in weights.items() if name.startswith(PART_WEIGHTS["text_encoder"])}
    return {name: tensor for name, tensor in weights.items() if name not in text}, text


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """One safetensors file that everybody may read."""
    save_file({name: _alone(tensor) for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory that no other has a part of, as in Meta's joined projections: safetensors wants that."""
    own = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone(memory_format=torch.contiguous_format)


def write_description(folder: Path, source: Source, dtype: torch.dtype) -> None:
    """Configuration, tokenizer and processor: what makes a checkpoint of weights, for this project and transformers."""
    config = copy.deepcopy(source.model.config)
    config.architectures, config.dtype = [type(source.model).__name__], dtype
    config.save_pretrained(folder)
    if source.tokenizer_place is not None:
        tokenizer = load_tokenizer(source.tokenizer_place)
        size, mask = source.record.image_size, 4 * source.record.image_size // source.record.patch_size
        images = Sam3ImageProcessor(size={"height": size, "width": size}, mask_size={"height": mask, "width": mask})
        Sam3Processor(images, tokenizer, target_size=size).save_pretrained(folder)
    for path in (source.folder / name for name in FILES) if source.folder else ():
        if path.is_file():  # it may say more than this project reads
            shutil.copy(path, folder)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """`slim.json`"""
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
