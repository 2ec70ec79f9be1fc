"""FP8 for the vision encoder: how far E4M3 is off in each block, measured on frames, and the encoder made of it.

A measurement runs the frames twice. First it notes the largest input of every linear layer; then it computes every
block in E4M3 with scales made of these (`export/fused/fp8_block.py`) beside the block as it is, on the same input. All
of it is PyTorch in fp32, on the CPU or a GPU. Blocks that differ by more than a limit stay in fp16.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Sam3Model

from export.fused.fp8_block import Fp8Block, Maxima
from export.fused.layers import gelu_linear
from export.fused.vision_encoder import FusedBlock, FusedVisionEncoder
from export.slim.calibration import Calibration, digest
from export.sub_models.precision import layer_norm


@torch.no_grad()
def measure(encoder: FusedVisionEncoder, frames: Sequence[Tensor]) -> tuple[tuple[Maxima, ...], tuple[float, ...]]:
    """Of every block of `encoder`, made with `kernels="plain"` in fp32: the largest inputs of its linear layers, and
    the largest |E4M3 - as it is| / |as it is| of its output. Frames uint8 [3,R,R] are looked at one by one on the
    device that the encoder is on."""
    found = [torch.zeros(4) for _ in encoder.blocks]
    for frame in frames:
        for n, (block, x, cos, sin) in enumerate(steps(encoder, frame)):
            found[n] = torch.maximum(found[n], largest_inputs(block, x, cos, sin))
    maxima = tuple(Maxima(*(max(float(value), 1e-6) for value in values)) for values in found)
    eights = [Fp8Block(block, largest) for block, largest in zip(encoder.blocks, maxima, strict=True)]
    errors = [0.0] * len(eights)
    for frame in frames:
        for n, (block, x, cos, sin) in enumerate(steps(encoder, frame)):
            wanted = block(x, cos, sin)
            error = float((eights[n](x, cos, sin) - wanted).norm() / wanted.norm())
            errors[n] = error if not error <= errors[n] else errors[n]  # NaN stays
    return maxima, tuple(errors)


def calibrate(model: Sam3Model, checkpoint: str, frames: Sequence[np.ndarray], device: str = "cpu") -> Calibration:
    """The calibration of a model at a resolution, whose vision encoder's weights have the hash `checkpoint`, on frames
    uint8 [3,R,R]. It is measured on `device`; the model stays where it is."""
    encoder = FusedVisionEncoder(model, "plain").eval()
    if device != "cpu":
        encoder = copy.deepcopy(encoder).to(device)
    maxima, errors = measure(encoder, [torch.from_numpy(frame) for frame in frames])
    return Calibration(maxima, errors, checkpoint, digest(frames))


def steps(encoder: FusedVisionEncoder, frame: Tensor) -> Iterator[tuple[FusedBlock, Tensor, Tensor, Tensor]]:
    """Every block with what it is given for a frame uint8 [3,R,R]: tokens [1,p*p,C], cosines and sines."""
    x = encoder.embed(frame[None].to(encoder.patch_weight.device))
    for block in encoder.blocks:
        tables = encoder.tables(block)
        yield block, x, *tables
        x = block(x, *tables)


def largest_inputs(block: FusedBlock, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The fields of `Maxima` of one block for one input: [4]."""
    normed = layer_norm(block.norm1, x)
    attended = block.attention(normed, cos, sin)
    x = x + block.output(attended)
    again = layer_norm(block.norm2, x)
    return torch.stack([t.abs().max() for t in (normed, attended, again, gelu_linear(block.fc1, again))]).cpu()


def in_fp8(encoder: FusedVisionEncoder, calibration: Calibration) -> FusedVisionEncoder:
    """The encoder itself, with E4M3 blocks in the place of all that do not stay as they are. Raises ValueError where
    the calibration is of another number of blocks."""
    if len(calibration.maxima) != len(encoder.blocks):
        raise ValueError(
            f"expected a calibration of {len(encoder.blocks)} blocks, got one of {len(calibration.maxima)}; it is of"
            " another checkpoint: calibrate again"
        )
    kept = set(calibration.in_fp16)
    pairs = zip(encoder.blocks, calibration.maxima, strict=True)
    encoder.blocks = nn.ModuleList(b if n in kept else Fp8Block(b, largest) for n, (b, largest) in enumerate(pairs))
    return encoder.eval()
