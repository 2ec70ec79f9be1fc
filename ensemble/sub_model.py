"""One sub-model as a Triton model of its own, for engines without a Triton backend.

`sam3-serve --sub-models` serves the sub-models so, to measure the parts alone. The model's configuration says which
engine opens its artifact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import triton_io
from ensemble.engines import open_sub_model
from ensemble.spec import find_engine


class TritonPythonModel:
    """Triton calls `initialize` once and `execute` for each batch of requests; each request is one call of the
    artifact."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        engine = config["parameters"]["engine"]["string_value"]
        path = Path(args["model_repository"]) / args["model_version"] / find_engine(engine).artifact
        self.outputs = [output["name"] for output in config["output"]]
        device_id = int(args["model_instance_device_id"] or 0) if args["model_instance_kind"] == "GPU" else None
        self.run = open_sub_model(engine, path, device_id)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        wanted = [name for name in self.outputs if name in request.requested_output_names()]
        try:
            results = self.run({tensor.name(): from_triton(tensor) for tensor in request.inputs()}, wanted)
        except Exception as error:
            return triton_io.error_response(f"{type(error).__name__}: {error}")
        return triton_io.response({name: to_triton(result) for name, result in results.items()})


def from_triton(tensor: Any) -> Any:
    """A NumPy array, or PyTorch's view of a tensor that lies on a GPU."""
    if tensor.is_cpu():
        return tensor.as_numpy()
    import torch

    return torch.from_dlpack(tensor.to_dlpack())


def to_triton(result: Any) -> Any:
    """A NumPy array as it is; a PyTorch tensor finished and in C order, copied only where its values lie otherwise.

    PyTorch calls any stride of an axis of one element contiguous; Triton, which compares every stride, does not.
    """
    if isinstance(result, np.ndarray):
        return result
    import torch

    if result.is_cuda:
        torch.cuda.current_stream(result.device).synchronize()  # whoever gets it reads it on a stream of its own
    return result.contiguous().as_strided(result.shape, torch.empty(result.shape, device="meta").stride())
