"""What runs a sub-model: one module an engine, each of which opens an artifact as a function.

A `SubModel` takes arrays by input name and the names of the outputs that are wanted. What it returns of outputs that
the pipeline reads (`TensorSpec.host`) are NumPy arrays; the others stay where they were made, as the engine's own
tensors, and are handed to the next sub-model as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble.engines.plans.library import PlanError, module_of, why_not_in_this_python
from ensemble.spec import find_engine

SubModel = Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
"""(inputs by name, names of the wanted outputs) -> outputs by name."""


def runs_plans(engine: str) -> bool:
    """Whether this Python runs plans of that engine. TensorRT's own it does where TensorRT is installed; elsewhere
    Triton's backend in the container does."""
    return engine == "tensorrt_rtx" or (engine == "tensorrt" and module_of(engine) is not None)


def open_sub_model(engine: str, path: Path, device_id: int | None) -> SubModel:
    """The artifact at `path` as a function on that GPU, or on the CPU for None and for an engine that needs no GPU.

    Raises FileNotFoundError where it was not exported, ValueError for an engine that Triton itself runs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; run sam3-export --engine {engine} for this repository")
    if engine == "onnxruntime":
        from ensemble.engines.onnxruntime import OnnxSubModel

        return OnnxSubModel(path)
    if engine == "aoti":
        from ensemble.engines.aoti import AotiRunner  # needs PyTorch, which a server with other engines does not have

        return AotiRunner(path, device_id).run
    if runs_plans(engine):
        if device_id is None:
            raise ValueError(f"{path}: expected a GPU for engine {engine}, got the CPU; use --engine onnxruntime there")
        if why := why_not_in_this_python(engine):
            raise PlanError(why)
        from ensemble.engines.plans.runner import PlanRunner  # needs CuPy

        return PlanRunner(engine, path, device_id).run
    raise ValueError(
        f"{path}: expected an engine that runs in this process (onnxruntime, aoti, tensorrt_rtx), got"
        f" {find_engine(engine).name!r}, which Triton runs; serve it with docker compose up"
    )
