"""Runs `model.onnx` with ONNX Runtime: on the CPU, or on a GPU with its CUDA provider."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort


class OnnxSubModel:
    """One session. All sessions of a process share one pool of threads, as many as there are cores.

    The threads may spin while they wait for work: nothing else in the process computes while a sub-model does.
    Raises RuntimeError where a GPU is asked for and ONNX Runtime has no CUDA provider.
    """

    def __init__(self, path: Path, device_id: int | None) -> None:
        _share_threads()
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        cuda = [] if device_id is None else [("CUDAExecutionProvider", {"device_id": device_id})]
        self._session = ort.InferenceSession(str(path), options, providers=[*cuda, "CPUExecutionProvider"])
        if cuda and "CUDAExecutionProvider" not in self._session.get_providers():
            raise RuntimeError(
                f"{path}: expected ONNX Runtime's CUDA provider, got {self._session.get_providers()}; install"
                " onnxruntime-gpu"
            )

    def __call__(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return dict(zip(outputs, self._session.run(list(outputs), dict(inputs)), strict=True))


@cache
def _share_threads() -> None:
    """Must come before the process' first session."""
    ort.set_global_thread_pool_sizes(len(os.sched_getaffinity(0)), 1)
