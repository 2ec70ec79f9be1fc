"""All engines of the export, by name."""

from __future__ import annotations

from ensemble.spec import find_engine
from export.engines.aoti import ENGINE as AOTI
from export.engines.engine import Tool
from export.engines.onnxruntime import ENGINE as ONNXRUNTIME
from export.engines.tensorrt.engine import ENGINE as TENSORRT
from export.engines.tensorrt.settings import TensorRT

ENGINES = {engine.spec.name: engine for engine in (TENSORRT, ONNXRUNTIME, AOTI)}


def ready(name: str, tensorrt: TensorRT | None = None) -> Tool:
    """The tool of the engine of that name. Raises ValueError where it is unknown, EngineError where it cannot be used
    here; both say what would work."""
    return ENGINES[find_engine(name).name].ready(tensorrt or TensorRT())
