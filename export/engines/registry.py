"""All engines of the export, by name."""

from __future__ import annotations

from ensemble.spec import find_engine
from export.engines.aoti import ENGINE as AOTI
from export.engines.engine import EngineError, Tool
from export.engines.onnxruntime import ENGINE as ONNXRUNTIME
from export.engines.tensorrt.engine import ENGINE as TENSORRT
from export.engines.tensorrt.settings import TensorRT
from export.engines.tensorrt_rtx.engine import ENGINE as TENSORRT_RTX

ENGINES = {engine.spec.name: engine for engine in (TENSORRT, TENSORRT_RTX, ONNXRUNTIME, AOTI)}


def ready(name: str, tensorrt: TensorRT | None = None, precision: str | None = None) -> Tool:
    """The tool of the engine of that name. Raises ValueError where it is unknown or does not make that `precision`,
    EngineError where it cannot be used here; both say what would work."""
    spec = find_engine(name)
    exact = None if precision is None else spec.exact(precision)
    if exact is not None and exact not in map(spec.exact, spec.precisions):
        *others, last = spec.precisions
        raise ValueError(f"engine {name} makes {', '.join(others)} or {last}, got precision {precision!r}")
    tool = ENGINES[spec.name].ready(tensorrt or TensorRT())
    if exact is not None and exact in tool.refused:
        raise EngineError(tool.refused[exact])
    return tool
