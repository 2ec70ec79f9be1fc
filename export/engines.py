"""What can run a sub-model: for each engine of `ensemble/spec.py` how an artifact is made, how it is opened again, and what has to be installed.

An engine takes a wrapper module and the model's record and writes one file; opened, the file is a function from arrays to arrays, which is all the gate
needs to know. TensorRT and ahead-of-time PyTorch are imported only when they are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ensemble.spec import ENGINES, Model
from export.onnx_graph import export_onnx, onnx_session
from export.verify import Run


class EngineError(RuntimeError):
    """The engine cannot be used here; the message says what is missing and what would work."""


@dataclass(frozen=True, slots=True)
class Engine:
    """`build(module, model, path)` writes the artifact, `open(path)` runs it; `precisions` are what it can be made in, the first the default."""

    build: Callable[[nn.Module, Model, Path], object]
    open: Callable[[Path], Run]
    precisions: tuple[str, ...]


def engine(name: str) -> Engine:
    """The engine of that name. Raises EngineError where it is unknown or not installed, saying what would work."""
    if name not in ENGINES:
        raise EngineError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name == "tensorrt":
        _need(
            "tensorrt",
            "engine tensorrt needs TensorRT's Python package, which is not installed here; run sam3-export in the export container of"
            " docker-compose.yml, or use --engine onnxruntime",
        )
        module = _room("export.tensorrt_plan", name)
        return Engine(module.build_plan, module.open_plan, ("fp16", "fp32"))
    if name == "aoti":
        import torch

        if not torch.cuda.is_available():
            raise EngineError(
                "engine aoti compiles for a CUDA GPU and PyTorch finds none here; run on the GPU host, or use --engine onnxruntime"
            )
        module = _room("export.aoti_package", name)
        return Engine(module.build_package, module.open_package, ("fp16", "fp32"))
    _need(
        "onnxruntime", "engine onnxruntime needs ONNX Runtime to verify what it writes; install it with pip install onnxruntime"
    )
    return Engine(export_onnx, onnx_session, ("fp32", "fp16"))


def _need(package: str, remedy: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise EngineError(remedy)


def _room(module: str, name: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f"engine {name} is not available: {error}; use --engine onnxruntime") from error
