"""A checkpoint, a variant and an engine go in; out come one hash of everything that an artifact is made from, and the
manifest that tells it to people.

The hash decides whether the next run keeps an artifact: whatever changes what is built has to be in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ensemble.spec import ENGINES, Variant
from export.checkpoint import Source
from export.engines.onnx import OPSET
from export.engines.registry import Engine
from export.gate.verify import GateReport
from export.repository import file_sha256
from export.sub_models.parts import STYLES

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")
SHARED_CODE = ("checkpoint.py", "sub_models", "engines/onnx.py")
ENGINE_CODE = {"tensorrt": ("engines/tensorrt",), "aoti": ("engines/aoti.py", "fused"), "onnxruntime": ()}
"""Files and folders of this room whose change makes artifacts stale, beside the facts of `recipe`."""


def code_files(engine: str, room: Path = Path(__file__).parent) -> list[Path]:
    """Every module that takes part in making an artifact of `engine`, in a fixed order."""
    places = [room / place for place in (*SHARED_CODE, *ENGINE_CODE[engine])]
    return [path for place in places for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]


def recipe(source: Source, variant: Variant, engine: str, part: str, tool: Engine) -> str:
    """Hash of everything that one artifact is made from: weights, record, precision, engine, what it is built for,
    library versions and the code that makes graphs."""
    model = getattr(variant, part)
    code = [file_sha256(path) for path in code_files(engine)]
    facts = [
        source.sha256,
        asdict(model),
        torch_precision(variant),
        variant.precision,
        engine,
        asdict(STYLES[engine]),
        dict(tool.built_for),
        dict(tool.settings),
        OPSET,
        versions(),
        code,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def manifest(
    source: Source,
    variant: Variant,
    engine: str,
    part: str,
    recipe: str,
    tool: Engine,
    facts: Mapping[str, Any],
    gate: GateReport,
) -> dict[str, Any]:
    """What is known about one artifact, for people and for the next run. `publish` adds the files' hashes."""
    model = getattr(variant, part)
    return {
        "model": model.name,
        "engine": engine,
        "artifact": ENGINES[engine].artifact,
        "precision": variant.precision,
        "checkpoint": {"name": source.name, "sha256": source.sha256},
        "recipe": recipe,
        "built_for": dict(tool.built_for),
        "versions": versions(),
        "build_seconds": facts["build_seconds"],
        "build": facts["build"],
        "gate": {
            "outputs": {
                c.output: {"cosine": c.cosine, "relative_error": c.relative}
                for c in gate.outputs
                if c.model == model.name
            },
            "detections": asdict(gate.detections),
        },
    }


def versions() -> dict[str, str]:
    """Installed versions of the libraries that an artifact depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ImportError:
            continue
    return found


def torch_precision(variant: Variant) -> str:
    """Precision of the torch modules: int8 and fp8 are quantised by the engine, from fp16."""
    return "fp32" if variant.precision == "fp32" else "fp16"
