"""Runs `model.onnx` with ONNX Runtime: on the CPU, or on a GPU with its CUDA provider."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort


class OnnxSubModel:
    """One session. Its threads sleep while they wait: the front models decode, and the clients of a small machine draw,
    on the same cores. On two cores, eight frames under way, that gave twice the frames a second of one pool of spinning
    threads for all sessions.

    Raises RuntimeError where a GPU is asked for and ONNX Runtime has no CUDA provider.
    """

    def __init__(self, path: Path, device_id: int | None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        cuda = [] if device_id is None else [("CUDAExecutionProvider", {"device_id": device_id})]
        self._session = ort.InferenceSession(str(path), options, providers=[*cuda, "CPUExecutionProvider"])
        if cuda and "CUDAExecutionProvider" not in self._session.get_providers():
            raise RuntimeError(
                f"{path}: expected ONNX Runtime's CUDA provider, got {self._session.get_providers()}; install"
                " onnxruntime-gpu"
            )

    def __call__(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return dict(zip(outputs, self._session.run(list(outputs), dict(inputs)), strict=True))
