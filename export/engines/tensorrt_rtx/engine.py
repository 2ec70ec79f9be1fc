"""TensorRT for RTX: plans for graphics cards, built on any machine."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ensemble.engines.plans.cards import INSTALL
from ensemble.engines.plans.library import module_of
from ensemble.gate.machine import engine_version
from ensemble.gate.measure import on_host
from ensemble.records import ModelSpec
from ensemble.spec import ENGINES, Variant
from export.engines.engine import Engine, EngineError, Tool
from export.engines.int8_calibrated import CODE, in_int8, quantise_noted
from export.engines.onnx import export_onnx
from export.engines.quantised_graph import quantise_products
from export.engines.tensorrt.engine import ENGINE as TENSORRT
from export.engines.tensorrt.settings import TensorRT, answer_of
from export.engines.tensorrt_rtx.build import LEVEL
from export.engines.tensorrt_rtx.package import FP8_FROM, USUAL, check_capabilities, dotted
from export.gate.reference import Arrays
from export.gate.verify import Run
from export.repository import file_sha256
from export.slim.calibration import Calibration

MAXIMA = "largest_inputs"
"""Attribute of a vision encoder that is to be built in fp8."""


def ready(settings: TensorRT) -> Tool:
    """Raises EngineError where TensorRT for RTX is not installed, ValueError for a card that it does not build for."""
    version = engine_version("tensorrt_rtx")
    if version is None or module_of("tensorrt_rtx") is None:
        raise EngineError(
            f"engine tensorrt_rtx needs TensorRT for RTX; install it with {INSTALL}, or use --engine onnxruntime"
        )
    capabilities = settings.compute_capability or capability_here() or USUAL
    check_capabilities(capabilities)
    cards = " ".join(map(dotted, sorted(capabilities)))
    refused = {}
    if min(capabilities) < FP8_FROM:
        refused["fp8"] = (
            f"precision fp8 needs cards of compute capability {dotted(FP8_FROM)} or later (RTX 40 and 50 series), got"
            f" --compute-capability {cards}; name those alone, as in --compute-capability 89 120, or use --precision"
            " fp16"
        )

    def build(module: nn.Module, model: ModelSpec, variant: Variant, path: Path) -> Mapping[str, Any]:
        return build_plan(module, model, variant, path, sorted(capabilities))

    built_for = {"tensorrt_rtx": version, "compute_capability": cards}
    runs = capability_here() in [(c,) for c in capabilities] and importlib.util.find_spec("cupy")
    return Tool(ENGINE, build, open_plan if runs else None, built_for, {"level": LEVEL}, refused)


def open_plan(path: Path) -> Run:
    """A function from arrays to arrays that runs the plan on the first GPU."""
    from ensemble.engines.plans.runner import PlanRunner  # needs CuPy

    runner = PlanRunner("tensorrt_rtx", path, 0)

    def run(arrays: Arrays) -> dict[str, np.ndarray]:
        return {name: on_host(value) for name, value in runner.run(arrays, runner.outputs).items()}

    return run


def capability_here() -> tuple[int, ...]:
    """That of the GPU of this machine; empty where there is none."""
    if not torch.cuda.is_available():
        return ()
    major, minor = torch.cuda.get_device_capability()
    return (10 * major + minor,)


def in_fp8(encoder: nn.Module, calibration: Calibration) -> nn.Module:
    """The vision encoder itself, with a note of the largest input of each linear layer whose product is to be in E4M3;
    the layers of a block are in the order in which its graph has them."""
    kept = set(calibration.in_fp16)
    setattr(
        encoder,
        MAXIMA,
        [
            None if n in kept else value
            for n, block in enumerate(calibration.maxima)
            for value in (block.qkv, block.output, block.fc1, block.fc2)
        ],
    )
    return encoder


def build_plan(
    module: nn.Module, model: ModelSpec, variant: Variant, path: Path, capabilities: list[int]
) -> dict[str, Any]:
    """Builds the plan of a torch module at `path`, by way of an ONNX file that is removed again. Returns what the
    manifest says of it. Raises PlanError where the build fails, with what TensorRT said last."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        onnx = Path(folder) / "model.onnx"
        export_onnx(module, model, onnx)
        if maxima := getattr(module, MAXIMA, None):
            quantise_products(onnx, maxima, model.name)
        said = quantise_noted(module, onnx)
        hashes = [file_sha256(file) for file in sorted(onnx.parent.glob("model.onnx*"))]  # weights may lie beside it
        command = [sys.executable, "-m", "export.engines.tensorrt_rtx.build", "--onnx", str(onnx), "--plan", str(path)]
        told = ["--part", model.part, "--variant", json.dumps(variant.to_dict())]
        info = answer_of([*command, *told, "--compute-capability", *map(str, capabilities)])
    return {**info, "onnx_sha256": hashes, **said}


ENGINE = Engine(
    ENGINES["tensorrt_rtx"],
    TENSORRT.style,  # what is built here without a GPU is what the container builds
    code=("engines/tensorrt", "engines/tensorrt_rtx", *CODE, "slim/fp8.py"),
    ready=ready,
    in_int8=in_int8,
    in_fp8=in_fp8,
)
