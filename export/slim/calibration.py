"""A calibration of FP8: which frames it is made of, what was measured on them, and the file that keeps it.

The file lies beside the artifact, so that an export repeats: as long as checkpoint, frames and limit are the same, its
scales and its choice of blocks are used again. Where no frames are given, whatever is there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from export.fused.fp8_block import Maxima
from export.gate.frames import SUFFIXES, drawn_frames, to_pixels

FILE = "calibration.json"
ERROR_LIMIT = 0.05
"""Largest error of a block's output, |E4M3 - as it is| / |as it is|. Rounding alone makes 0.014 to 0.03 of the small
checkpoint's blocks and of random ones; more comes from values that lie far apart, which one scale does not suit."""
FEWEST_FRAMES, MOST_FRAMES = 4, 64
"""Few frames show few of the largest values, which would be cut off later; more than enough only take time."""
DRAWN_FRAMES = 8


@dataclass(frozen=True)
class Calibration:
    """Of every block: the largest inputs of its linear layers, and the error of its output in E4M3. Blocks whose error
    is above `limit` stay in fp16. `checkpoint` and `frames` are hashes of what it was measured with."""

    maxima: tuple[Maxima, ...]
    errors: tuple[float, ...]
    checkpoint: str = ""
    frames: str = ""
    limit: float = ERROR_LIMIT

    @property
    def in_fp16(self) -> tuple[int, ...]:
        """Numbers of the blocks that stay in fp16."""
        return tuple(n for n, error in enumerate(self.errors) if not error <= self.limit)  # NaN stays in fp16

    def text(self) -> str:
        """The file's content; the same calibration has the same text."""
        return json.dumps({**asdict(self), "in_fp16": self.in_fp16}, indent=1) + "\n"

    def summary(self) -> dict[str, object]:
        """What the artifact's manifest says of it."""
        return {"blocks_in_fp16": list(self.in_fp16), "largest_error": max(self.errors), "limit": self.limit}

    @classmethod
    def read(cls, path: Path) -> Calibration | None:
        """The calibration in a file, None where there is no such file. Raises ValueError where it is something else."""
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text())
            maxima = tuple(Maxima(**block) for block in data["maxima"])
            return cls(maxima, tuple(data["errors"]), data["checkpoint"], data["frames"], data["limit"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected a calibration that sam3-export wrote in {path}, got {error!r}; delete the file to calibrate"
                " again"
            ) from error


def calibration_frames(folder: Path, resolution: int) -> list[np.ndarray]:
    """Images of `folder` as uint8 [3,R,R], at most MOST_FRAMES spread over all of them.

    Raises ValueError, with what to do, where there are none or fewer than FEWEST_FRAMES, and for one that cannot be
    read.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if len(paths) < FEWEST_FRAMES:
        raise ValueError(
            f"expected at least {FEWEST_FRAMES} images ({', '.join(SUFFIXES)}) in {folder} to calibrate on, found"
            f" {len(paths) or 'none'}; 16 to {MOST_FRAMES} frames of your own cameras are a good choice"
        )
    step = max(1.0, len(paths) / MOST_FRAMES)
    return [_pixels(paths[int(i * step)], resolution) for i in range(min(len(paths), MOST_FRAMES))]


def _pixels(path: Path, resolution: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return to_pixels(image, resolution)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"expected an image to calibrate on, {path} cannot be read ({error}); take it out of the folder"
        ) from error


def drawn_pixels(resolution: int) -> list[np.ndarray]:
    """Frames for a checkpoint whose user gives none: drawn scenes."""
    return [frame.pixels for frame in drawn_frames(DRAWN_FRAMES, resolution)]


def digest(frames: Sequence[np.ndarray]) -> str:
    """Hash of all pixels."""
    found = hashlib.sha256()
    for frame in frames:
        found.update(repr(frame.shape).encode())
        found.update(frame.tobytes())
    return found.hexdigest()
