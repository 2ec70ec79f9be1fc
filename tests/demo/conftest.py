"""Fixtures of the demo's tests: reels with known answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from clients.message import parse_response
from clients.video.encode import to_jpeg
from demo.cameras import Reel, Shot
from demo.steps import Film
from ensemble.spec import STAGES, Variant

SMALL = Variant(252)
WIDTH, HEIGHT = 96, 48
Answer = tuple[str, float, tuple[float, float, float, float]]


def filled(box: Sequence[float], height: int, width: int) -> np.ndarray:
    """bool [height, width], true inside the box."""
    y, x = np.mgrid[:height, :width]
    return (
        (x >= box[0] * width - 1e-6)
        & (x < box[2] * width - 1e-6)
        & (y >= box[1] * height - 1e-6)
        & (y < box[3] * height - 1e-6)
    )


@pytest.fixture
def reel() -> Callable[..., Reel]:
    """`reel(classes, truths, answers)`: per frame, true (class, box) pairs and answered (class, score, box) triples."""

    def make(
        classes: list[str],
        truths: Sequence[Sequence[tuple[str, tuple[float, float, float, float]]]],
        answers: Sequence[Sequence[Answer]],
        batch: int = 2,
        name: str = "camera 1",
    ) -> Reel:
        frames = []
        for things in truths:
            objects = []
            for label, box in things:
                mask = filled(box, HEIGHT, WIDTH)
                rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                objects.append(
                    {
                        "class": label,
                        "bbox": list(box),
                        "area": float(mask.sum()),
                        "mask": rle | {"counts": rle["counts"].decode()},
                    }
                )
            frames.append(objects)
        film = Film(
            name,
            Path("nowhere.mp4"),
            {"classes": classes, "width": WIDTH, "height": HEIGHT, "fps": 10, "frames": frames},
        )
        shots = []
        for index, found in enumerate(answers):
            bits = [np.packbits(filled(box, SMALL.mask_size, SMALL.mask_size), axis=1) for _, _, box in found]
            arrays = {
                "boxes": np.array([box for _, _, box in found], np.float32).reshape(-1, 4),
                "scores": np.array([score for _, score, _ in found], np.float32),
                "class_ids": np.array([classes.index(label) for label, _, _ in found], np.int32),
                "presence": np.ones(len(classes), np.float32),
                "mask_bits": np.array(bits, np.uint8).reshape(-1, SMALL.mask_size, SMALL.mask_row_bytes),
                "mask_rle": np.array([], dtype=object),
                "frame_size": np.array([HEIGHT, WIDTH], np.int32),
                "stage_ms": np.arange(len(STAGES), dtype=np.float32),
                "batch": np.array([batch], np.int32),
            }
            wire = {name: array[None] for name, array in arrays.items()}
            shots.append(
                Shot(
                    index,
                    to_jpeg(np.full((HEIGHT, WIDTH, 3), 80, np.uint8)),
                    parse_response(wire.get, classes, model="m", latency_ms=20.0),
                )
            )
        return Reel(film, 10.0, shots, [], 2.0)

    return make
