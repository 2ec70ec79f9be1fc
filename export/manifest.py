"""What an artifact is made from, as one hash and as the manifest beside it.

The hash decides whether the next run keeps an artifact, so whatever changes what is built has to be in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ensemble.gate.limits import part_precision
from ensemble.gate.machine import built_on, conditions_here
from ensemble.spec import Variant
from export.checkpoint import Source
from export.checkpoint.source import TRACKER_PARTS
from export.engines.engine import Engine, Tool
from export.engines.onnx import OPSET
from export.gate.verify import GateReport
from export.repository import file_sha256
from export.sub_models.precision import PRECISIONS, torch_precision

Facts = Mapping[str, Any]
"""What `build_part` tells of a build."""
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")
ROOM = Path(__file__).parent
SHARED_CODE = ("checkpoint/source.py", "sub_models", "engines/onnx.py")
"""Files and folders of this room whose change makes the artifacts of all engines stale; each adds its `Engine.code`."""
TRACKER_CODE, TRACKER_LOADING = "sub_models/tracker", "checkpoint/tracker.py"
"""What makes the tracker's artifacts alone stale."""


def code_files(engine: Engine, room: Path = ROOM, tracker: bool = False) -> list[Path]:
    """Every module that takes part in making an artifact of `engine`, in a fixed order; those of the tracker's parts
    with `tracker`."""
    places = [room / place for place in (*SHARED_CODE, *((TRACKER_LOADING,) if tracker else ()), *engine.code)]
    files = [path for place in places for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return [path for path in files if tracker or room / TRACKER_CODE not in path.parents]


def recipe(source: Source, variant: Variant, part: str, tool: Tool, room: Path = ROOM, calibration: str = "") -> str:
    """Hash of everything that one artifact is made from: weights, record, precision and its calibration (a text that
    differs where that does), engine, what it is built for, versions of libraries and the code that makes it."""
    facts = [
        source.part_sha256(part),
        asdict(getattr(variant, part)),
        torch_precision(variant),
        part_precision(variant, part),
        tool.engine.spec.name,
        asdict(tool.engine.style),
        dict(tool.built_for),
        dict(tool.settings),
        OPSET,
        versions(),
        [file_sha256(path) for path in code_files(tool.engine, room, part in TRACKER_PARTS)],
    ]
    if part_precision(variant, part) not in PRECISIONS:
        facts.append(calibration)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def manifest(
    source: Source, variant: Variant, part: str, recipe: str, tool: Tool, facts: Facts, gate: GateReport | None
) -> dict[str, Any]:
    """What is known about one artifact, for people and for the next run; `publish` adds the hashes of its files. Its
    `gate` is None where the machine that built it could not run it: the one that serves it measures it first."""
    model, engine = getattr(variant, part), tool.engine.spec
    measured = gate and {
        "on": conditions_here(engine.name),
        "outputs": {
            c.output: {"cosine": c.cosine, "relative_error": c.relative} for c in gate.outputs if c.model == model.name
        },
        "detections": asdict(gate.detections) if gate.whole else None,
    }
    return {
        "model": model.name,
        "engine": engine.name,
        "artifact": engine.artifact,
        "precision": part_precision(variant, part),
        "checkpoint": {"name": source.name, "sha256": source.part_sha256(part)},
        "recipe": recipe,
        "built_for": dict(tool.built_for),
        "built_on": built_on(),
        "versions": versions(),
        "build_seconds": facts["build_seconds"],
        "build": facts["build"],
        "gate": measured,
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
