"""What runs a sub-model: one module an engine, each of which opens an artifact as a function.

A `SubModel` takes arrays by input name and the names of the outputs that are wanted. What it returns of outputs that
the pipeline reads (`TensorSpec.host`) are NumPy arrays; the others stay where they were made, as the engine's own
tensors, and are handed to the next sub-model as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble.spec import MB, find_engine

BESIDE_MB = 560
"""What a working process takes of a GPU beside PyTorch's memory: pictures, decoded files, kernels that are loaded at
their first use. Measured on an H100 with packages for 672: 500."""
LEAST_MB = 512
"""Room below which nothing can be computed."""
SubModel = Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
"""(inputs by name, names of the wanted outputs) -> outputs by name."""


def open_sub_model(engine: str, path: Path, device_id: int | None) -> SubModel:
    """The artifact at `path` as a function on that GPU, or on the CPU for None.

    Raises FileNotFoundError where it was not exported, ValueError for an engine that Triton itself runs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; run sam3-export --engine {engine} for this repository")
    if engine == "onnxruntime":
        from ensemble.engines.onnxruntime import OnnxSubModel

        return OnnxSubModel(path, device_id)
    if engine == "aoti":
        from ensemble.engines.aoti import AotiRunner  # needs PyTorch, which a server with other engines does not have

        return AotiRunner(path, device_id).run
    raise ValueError(
        f"{path}: expected an engine that runs in this process (onnxruntime, aoti), got {find_engine(engine).name!r},"
        " which Triton runs; serve it with docker compose up"
    )


def release_memory() -> None:
    """Gives back the GPU memory that this process keeps for its next calls; for any thread."""
    if "torch" in sys.modules:
        from ensemble.engines import cuda_graphs

        cuda_graphs.release()
    if "cupy" in sys.modules:
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()


def limit_memory(device_id: int, more_mb: float) -> None:
    """From now on this process takes at most so many megabytes more of that GPU; a call that needs more raises an error
    that says so. Raises MemoryError where there is no room for any work."""
    if more_mb < LEAST_MB:
        raise MemoryError(
            f"expected room for at least {LEAST_MB} MB of work beside the sub-models, got {more_mb:,.0f} MB; state more"
            " with --gpu-memory, or serve a lower resolution"
        )
    if "torch" in sys.modules:
        import torch

        total = torch.cuda.get_device_properties(device_id).total_memory
        limit = torch.cuda.memory_reserved(device_id) + (more_mb - BESIDE_MB) * MB
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device_id)
