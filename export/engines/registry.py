"""What can run a sub-model: for each engine of `ensemble/spec.py` how an artifact is made, how it is opened again, and
what has to be installed.

An engine takes a wrapper module and its part's record and writes one file; opened, the file is a function from arrays
to arrays, which is all the gate needs to know. Ahead-of-time PyTorch is imported only when it is asked for, TensorRT
only in processes of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ensemble.records import ModelSpec
from ensemble.spec import ENGINES, Variant
from export.engines.onnx import export_onnx, onnx_session
from export.engines.tensorrt import host as tensorrt_host
from export.engines.tensorrt.host import TensorRT
from export.engines.tensorrt.network import PlanError
from export.gate.verify import Run

OLDEST_GPU = (8, 0)
"""Ampere: on older ones the kernels' blocks do not fit in shared memory, and Triton writes no matrix instructions for
them."""
Report = Callable[[str], None]
"""Called with a line of progress."""
Build = Callable[[nn.Module, ModelSpec, Variant, Path, Report], Mapping[str, Any]]
"""(module, its record, the variant it is of, file to write, progress) -> what the manifest says of the build."""


class EngineError(RuntimeError):
    """The engine cannot be used here; the message says what is missing and what would work."""


@dataclass(frozen=True, slots=True)
class Engine:
    """`build` writes the artifact, `open(path)` runs it (and may have a `close`); `precisions` are what it can be made
    in, the first the default. `built_for` is what its artifacts are bound to, `settings` what else changes them; a
    change of either makes artifacts stale. `side_by_side`: several artifacts may be built at once."""

    build: Build
    open: Callable[[Path], Run]
    precisions: tuple[str, ...]
    built_for: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    side_by_side: bool = False


def engine(name: str, tensorrt: TensorRT | None = None) -> Engine:
    """The engine of that name. Raises EngineError where it is unknown or not installed, saying what would work."""
    if name not in ENGINES:
        raise EngineError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    return {"tensorrt": lambda: _tensorrt(tensorrt or TensorRT()), "aoti": _aoti, "onnxruntime": _onnxruntime}[name]()


def _tensorrt(settings: TensorRT) -> Engine:
    try:
        about = settings.about()
    except PlanError as error:
        raise EngineError(
            f"engine tensorrt needs TensorRT's Python package and an NVIDIA GPU; {settings.interpreter} says: {error}."
            " Run sam3-export in the build container of docker-compose.yml, name a Python that has it with"
            " --tensorrt-python, or use --engine onnxruntime"
        ) from error

    def build(module: nn.Module, model: ModelSpec, variant: Variant, path: Path, report: Report) -> Mapping[str, Any]:
        return tensorrt_host.build_plan(module, model, variant, path, settings, report)

    shaping = {"level": settings.level, "workspace_mb": settings.workspace_mb}
    return Engine(build, lambda path: tensorrt_host.open_plan(path, settings), ("fp16", "fp32"), about, shaping)


def _aoti() -> Engine:
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            "engine aoti compiles for a CUDA GPU and PyTorch finds none here; run on the GPU host, or use --engine"
            " onnxruntime"
        )
    if torch.cuda.get_device_capability() < OLDEST_GPU:
        oldest, found = (".".join(map(str, c)) for c in (OLDEST_GPU, torch.cuda.get_device_capability()))
        raise EngineError(
            f"engine aoti's kernels need a GPU of compute capability {oldest} or later, {torch.cuda.get_device_name()}"
            f" has {found}; use --engine tensorrt or --engine onnxruntime"
        )
    try:
        package = importlib.import_module("export.engines.aoti")
    except ImportError as error:
        raise EngineError(f"engine aoti is not available: {error}; use --engine onnxruntime") from error

    def build(module: nn.Module, model: ModelSpec, variant: Variant, path: Path, report: Report) -> Mapping[str, Any]:
        package.build_apart(module, model, variant, path)
        return {}

    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    gpu = {"gpu": torch.cuda.get_device_name(), "compute_capability": capability}
    return Engine(build, package.open_package, ("fp16", "fp32"), gpu, side_by_side=True)


def _onnxruntime() -> Engine:
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError(
            "engine onnxruntime needs ONNX Runtime to verify what it writes; install it with pip install onnxruntime"
        )

    def build(module: nn.Module, model: ModelSpec, variant: Variant, path: Path, report: Report) -> Mapping[str, Any]:
        export_onnx(module, model, path)
        return {}

    return Engine(build, onnx_session, ("fp32", "fp16"))
