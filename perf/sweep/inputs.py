"""What measurements send: drawn scenes with objects in them, as frames and as perf_analyzer's input files.

Random bytes would measure another product: their JPEG is three times as large, nothing is found in them and no mask is
ever made. The scenes are those that the small checkpoint is judged on, so that most classes asked for are there.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ensemble.preprocess.cpu import decode, to_pixel_values
from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD

CLASS_NAMES = tuple(
    f"{colour} {shape}" for shape in ("circle", "square", "triangle", "star") for colour in ("red", "blue", "green")
)
"""Asked for where a scene has fewer classes of its own than the point wants."""
FRAMES = 16


@dataclass(frozen=True, slots=True)
class SampleFrame:
    """One drawn frame: its JPEG file, and the names of what is in it."""

    jpeg: bytes
    names: tuple[str, ...]


@lru_cache(maxsize=4)
def pictures(count: int = FRAMES, width: int = 640, height: int = 360) -> tuple[SampleFrame, ...]:
    """`count` held-out scenes, always the same ones."""
    from clients.video.encode import to_jpeg
    from export.tiny.random_scene import random_scene, validation_seeds
    from export.tiny.scenes import render

    drawn = []
    for seed in validation_seeds(count):
        rendering = render(random_scene(seed), height, width)
        names = tuple(dict.fromkeys(f"{i.colour} {i.shape}" for i in rendering.instances))
        drawn.append(SampleFrame(to_jpeg(rendering.frame), names))
    return tuple(drawn)


def classes_of(picture: SampleFrame, count: int) -> list[str]:
    """`count` names: those in the picture first, then others."""
    return list(dict.fromkeys((*picture.names, *CLASS_NAMES, *(f"thing {i}" for i in range(count)))))[:count]


def front_input(
    shown: Sequence[SampleFrame],
    classes: int,
    masks: str,
    threshold: float = DEFAULT_THRESHOLD,
    max_detections: int = DEFAULT_MAX_DETECTIONS,
) -> dict[str, Any]:
    """perf_analyzer's input for a front model: a step per picture."""
    steps = [
        {
            "image": {"b64": bytes_element(picture.jpeg), "shape": [1]},
            "classes": {"content": classes_of(picture, classes), "shape": [classes]},
            "threshold": {"content": [threshold], "shape": [1]},
            "mask_format": {"content": [masks], "shape": [1]},
            "max_detections": {"content": [max_detections], "shape": [1]},
        }
        for picture in shown
    ]
    return {"data": steps}


def vision_input(shown: Sequence[SampleFrame], resolution: int) -> dict[str, Any]:
    """The same pictures as the vision encoder gets them: uint8 [3,R,R]."""
    steps = []
    for picture in shown:
        pixels = to_pixel_values(decode(picture.jpeg), resolution)
        steps.append(
            {"pixel_values": {"b64": base64.b64encode(pixels.tobytes()).decode(), "shape": list(pixels.shape)}}
        )
    return {"data": steps}


def bytes_element(data: bytes) -> str:
    """A BYTES element as perf_analyzer reads it from base64: four bytes of length, little-endian, then the bytes."""
    return base64.b64encode(struct.pack("<I", len(data)) + data).decode()


def write_input(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path
