"""FP8 for the vision encoder: what the activations' scales are, and which blocks stay in fp16.

A calibration runs a few frames twice. First it notes the largest input of every linear layer; then it computes every
block in E4M3 with scales made of these (`export/fused/fp8_block.py`) beside the block as it is, on the same input, and
keeps in fp16 the blocks that differ by more than a limit. What was found is a file of JSON, so that an export repeats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.fused.fp8_block import Fp8Block, Maxima
from export.fused.layers import gelu_linear
from export.fused.vision_encoder import FusedBlock, FusedVisionEncoder
from export.sub_models.precision import layer_norm

ERROR_LIMIT = 0.03
"""Largest |E4M3 - as it is| / |as it is| of a block's output. Errors of blocks hardly depend on each other: 32 of half
this much come to a cosine of about 0.996 at the end."""
FEWEST_FRAMES = 2


@dataclass(frozen=True)
class Calibration:
    """Of every block: the largest inputs of its linear layers, and the error of its output in E4M3. `frames` were
    looked at, and blocks whose error is above `limit` stay in fp16."""

    maxima: tuple[Maxima, ...]
    errors: tuple[float, ...]
    frames: int
    limit: float = ERROR_LIMIT

    @property
    def in_fp16(self) -> tuple[int, ...]:
        """Numbers of the blocks that stay in fp16."""
        return tuple(n for n, error in enumerate(self.errors) if not error <= self.limit)  # NaN stays in fp16

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({**asdict(self), "in_fp16": self.in_fp16}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Raises ValueError where the file is no calibration."""
        try:
            data = json.loads(path.read_text())
            maxima = tuple(Maxima(**block) for block in data["maxima"])
            return cls(maxima, tuple(data["errors"]), data["frames"], data["limit"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected a calibration as sam3-export --precision fp8 writes it in {path}, got {error!r}; delete the"
                " file to calibrate again"
            ) from error


@torch.no_grad()
def calibrate(encoder: FusedVisionEncoder, frames: Sequence[Tensor], limit: float = ERROR_LIMIT) -> Calibration:
    """Calibrates `encoder`, made with `kernels="plain"` in fp32, on frames uint8 [3,R,R] one after another, on the
    device that the encoder is on. Raises ValueError for fewer than `FEWEST_FRAMES` frames."""
    if len(frames) < FEWEST_FRAMES:
        raise ValueError(
            f"expected at least {FEWEST_FRAMES} frames to calibrate fp8 on, got {len(frames)}; 16 to 64 of your own"
            " cameras are a good choice"
        )
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
    return Calibration(maxima, tuple(errors), len(frames), limit)


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
