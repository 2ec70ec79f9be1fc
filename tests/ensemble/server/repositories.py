"""Model repositories with artifacts of the real sizes, for tests that load nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemble import pbtxt
from ensemble.server import repository
from ensemble.spec import ENGINES, Variant

ARTIFACT_MB = {"vision_encoder": 880, "text_encoder": 680, "geometry_encoder": 20, "decoder": 60, "mask_head": 10}
ARTIFACT_MB |= {"tracker_neck": 14, "tracker_step": 21, "memory_encoder": 3, "tracker_seed": 9}


def write(
    root: Path, resolutions: Sequence[int], engine: str = "tensorrt", *, built_for: dict | None = None, **limits: Any
) -> Path:
    """Writes a repository whose artifacts are holes: they take no room."""
    for resolution in resolutions:
        variant = Variant(resolution=resolution, **limits)
        models = [(model, engine) for model in (*variant.sub_models, *variant.tracker_parts, variant.front)]
        if ENGINES[engine].shares_gpu:
            models.append((variant.text_encoder_cpu, "onnxruntime"))
        for model, runner in models:
            folder = pbtxt.write(model, variant, runner, root)
            if model.part == "front":
                continue
            with (folder / "1" / ENGINES[runner].artifact).open("wb") as file:
                file.truncate(ARTIFACT_MB[model.part] << 20)
            if built_for is not None:
                data = {"checkpoint": {"name": "facebook/sam3"}, "built_for": built_for}
                (folder / repository.MANIFEST).write_text(json.dumps(data))
    return root
