"""Runs one sub-model's artifact inside Triton's python backend, for the engines that have no Triton backend where this
server runs.

The model's own configuration says what flows in and out, and which engine: `onnxruntime` opens `model.onnx`, `aoti`
opens `model.pt2`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from ensemble.engines.turns import Turns
from ensemble.spec import ENGINES


class Runner(Protocol):
    """Runs one artifact: Triton tensors by input name in; of the wanted outputs NumPy arrays, or whatever has
    `__dlpack__`, out."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]: ...


class OnnxRuntimeRunner:
    """ONNX Runtime on the CUDA provider where Triton placed the instance on a GPU, on the CPU otherwise."""

    def __init__(self, path: Path, on_gpu: bool, device_id: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        # Five sessions share the cores: threads that spin while they wait would take them from the session that has
        # work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        cuda = [("CUDAExecutionProvider", {"device_id": device_id})] if on_gpu else []
        self._session = ort.InferenceSession(str(path), options, providers=[*cuda, "CPUExecutionProvider"])
        if on_gpu and "CUDAExecutionProvider" not in self._session.get_providers():
            raise RuntimeError(
                f"{path}: expected ONNX Runtime's CUDA provider, got {self._session.get_providers()}; install"
                " onnxruntime-gpu"
            )

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        return self._session.run(list(outputs), {name: tensor.as_numpy() for name, tensor in inputs.items()})


class TritonPythonModel:
    """Triton calls `initialize` once and `execute` for each batch of requests; each request is one call of the
    artifact."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        engine = config["parameters"]["engine"]["string_value"]
        path = Path(args["model_repository"]) / args["model_version"] / ENGINES[engine].artifact
        if not path.is_file():
            raise FileNotFoundError(
                f"{args['model_name']}: expected {path}; run sam3-export --engine {engine} for this repository"
            )
        self.outputs = [output["name"] for output in config["output"]]
        device_id = int(args["model_instance_device_id"] or 0) if args["model_instance_kind"] == "GPU" else None
        self.runner = open_artifact(engine, path, device_id)
        self.turns = Turns(os.getppid())  # Triton starts every model's process itself, so they all have the same parent

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        wanted = [name for name in self.outputs if name in request.requested_output_names()]
        try:
            with self.turns:
                results = self.runner.run({tensor.name(): tensor for tensor in request.inputs()}, wanted)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
        return pb_utils.InferenceResponse(
            [to_triton(name, result) for name, result in zip(wanted, results, strict=True)]
        )


def open_artifact(engine: str, path: Path, device_id: int | None) -> Runner:
    """The runner of `path` on that GPU, or on the CPU for None. Raises ValueError for an engine that has a Triton
    backend of its own."""
    if engine == "onnxruntime":
        return OnnxRuntimeRunner(path, device_id is not None, device_id or 0)
    if engine == "aoti":
        from ensemble.engines.aoti import AotiRunner  # needs PyTorch, which a server with other engines does not have

        return AotiRunner(path, device_id)
    raise ValueError(
        f"{path}: expected engine onnxruntime or aoti, got {engine!r}; export again with an engine this server runs"
    )


def to_triton(name: str, result: Any) -> Any:
    """An output as a Triton tensor; one on a GPU is handed over where it lies."""
    return (
        pb_utils.Tensor(name, result) if isinstance(result, np.ndarray) else pb_utils.Tensor.from_dlpack(name, result)
    )
