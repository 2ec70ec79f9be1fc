"""The schemes of `sam3-perf bench weights`: how the small checkpoint becomes a folder of each, how each computes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ensemble.spec import MB
from export.checkpoint import Source, load
from export.slim.fp8_predictor import Fp8Predictor
from export.slim.saving import write_model
from export.slim.slimming import Job, slim
from export.tiny.predictor import Detections, TorchPredictor
from export.tiny.prompts import Prompt

MADE = ("fp32", "stripped", "half fp16", "half bf16", "fp8")
"""Schemes that are made here of one checkpoint, and that PyTorch computes; the first is what others are beside."""
EXPORTED = {"onnxruntime fp32": "fp32", "int8": "int8"}
"""Schemes that an exported repository computes -> its precision."""
GRAPHS = "int8, calibrated"
"""The scheme that the graphs of a GPU's plans compute."""
TRAINING = "last.ckpt"


class _Half(TorchPredictor):
    """`TorchPredictor` that computes in 16 bits on a GPU; a processor computes rounded weights in fp32."""

    dtype = torch.float16

    def __call__(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Detections]:
        with torch.autocast("cuda", self.dtype, enabled=self.model.device.type == "cuda"):
            return super().__call__(frame, prompts)


class Fp16Predictor(_Half):
    """In fp16 where a GPU computes."""


class Bf16Predictor(_Half):
    """In bf16 where a GPU computes."""

    dtype = torch.bfloat16


PREDICTORS: Mapping[str, type[TorchPredictor]] = {
    "half fp16": Fp16Predictor,
    "half bf16": Bf16Predictor,
    "fp8": Fp8Predictor,
}
"""Of schemes that do not compute in fp32."""


@dataclass(frozen=True, slots=True)
class Made:
    """A scheme's checkpoint folder, its size on disk in MB, and that of what it was made of where that is another
    file."""

    folder: Path
    size_mb: float
    before_mb: float | None = None


def make(scheme: str, checkpoint: Path, work: Path) -> Made:
    """The folder of one of `MADE`, below `work`. Raises ValueError and RuntimeError as `sam3-slim` does."""
    whole, target = work / "fp32", work / scheme.replace(" ", "-")
    if not whole.exists():
        source = load(str(checkpoint))
        write_model(replace(source, account=None), source.model, whole, {})
    if scheme in ("fp32", "fp8"):
        return Made(whole, size_mb(whole))  # fp8 is made of it when it is loaded
    source = load(str(whole)) if scheme.startswith("half") else _training(whole, work / "training")
    if scheme == "stripped":
        slim(Job(source, target))
        return Made(target, size_mb(target), (work / "training" / TRAINING).stat().st_size / MB)
    from export.gate.frames import drawn_frames

    side = source.record.image_size
    slim(Job(source, target, scheme.removeprefix("half "), frames=drawn_frames(2, side), resolution=side))
    return Made(target, size_mb(target), size_mb(whole))


def size_mb(folder: Path) -> float:
    """Of all weights in a folder. Raises ValueError where there are none."""
    files = [path for path in folder.glob("*.safetensors") if path.is_file()]
    if not files:
        raise ValueError(
            f"expected a checkpoint folder with .safetensors files, found none in {folder}; write one with sam3-slim"
        )
    return sum(path.stat().st_size for path in files) / MB


def _training(whole: Path, folder: Path) -> Source:
    """What a training saves: weights in fp32 and AdamW's two moments of each."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = dict(load(str(whole)).model.state_dict())
    moments = {n: {"exp_avg": t.clone(), "exp_avg_sq": t.clone()} for n, t in enumerate(weights.values())}
    torch.save({"model": weights, "optimizer": {"state": moments}, "epoch": 1}, folder / TRAINING)
    return load(str(folder))


def fp8_size_mb(predict: Fp8Predictor) -> float:
    """Of the weights as an fp8 package stores them: E4M3 in one byte, everything else in two."""
    layers = "vision_encoder.backbone.layers."
    others = [t for name, t in predict.model.state_dict().items() if not name.startswith(layers)]
    blocks = [*predict.encoder.blocks.parameters(), *predict.encoder.blocks.buffers()]
    return sum(t.numel() * min(t.element_size(), 2) for t in (*others, *blocks)) / MB
