"""Runs `model.onnx` with ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort


class OnnxSubModel:
    """One session. Its threads sleep while they wait: the front models decode, and the clients of a small machine draw,
    on the same cores. On two cores, eight frames under way, that gave twice the frames a second of one pool of spinning
    threads for all sessions."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return dict(zip(outputs, self._session.run(list(outputs), dict(inputs)), strict=True))
