"""ONNX Runtime on the CPU: runs an ONNX file as it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ensemble.records import ModelSpec
from ensemble.spec import ENGINES, Variant
from export.engines.engine import Engine, EngineError, Tool
from export.engines.int8 import quantise
from export.engines.onnx import export_onnx
from export.engines.tensorrt.settings import TensorRT
from export.sub_models.parts import Style

FEEDS = "int8_feeds"
"""Attribute of a module that is to be built in INT8."""


def onnx_session(path: Path, threads: int = 0) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Opens `path` on the CPU (`threads` 0: all cores): inputs by name -> outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle sessions would take the cores from the reference.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: it warns about every initializer that it drops
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def build(module: nn.Module, model: ModelSpec, variant: Variant, path: Path) -> Mapping[str, Any]:
    """Writes `module` to `path`, in INT8 where `in_int8` has seen it, of which there is something to tell."""
    export_onnx(module, model, path)
    feeds = getattr(module, FEEDS, None)
    return {"int8": quantise(path, feeds)} if feeds else {}


def in_int8(module: nn.Module, feeds: Sequence[Mapping[str, np.ndarray]], _: str = "") -> nn.Module:
    """The module itself, with a note of inputs by which layers are chosen that stay in fp32; scales are chosen in every
    call, so there is nothing to calibrate."""
    setattr(module, FEEDS, feeds)
    return module


def ready(_: TensorRT) -> Tool:
    """Raises EngineError where ONNX Runtime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError(
            "engine onnxruntime needs ONNX Runtime to verify what it writes; install it with pip install onnxruntime"
        )
    return Tool(ENGINE, build, onnx_session)


ENGINE = Engine(
    ENGINES["onnxruntime"],
    Style("explicit", "plain"),
    code=("engines/onnxruntime.py", "engines/int8.py", "engines/quantised_graph.py"),
    ready=ready,
    in_int8=in_int8,
)
