"""TensorRT: builds plans for the GPU of this machine and runs them, in processes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ensemble.records import ModelSpec
from ensemble.spec import ENGINES, Variant
from export.engines.engine import Engine, EngineError, Tool
from export.engines.int8_calibrated import CODE, in_int8
from export.engines.tensorrt.host import build_plan, open_plan
from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.settings import TensorRT
from export.sub_models.parts import Style


def ready(settings: TensorRT) -> Tool:
    """Raises EngineError where the interpreter of the settings has no TensorRT, or the machine no GPU."""
    try:
        about = settings.about()
    except PlanError as error:
        raise EngineError(
            f"engine tensorrt needs TensorRT's Python package and an NVIDIA GPU; {settings.interpreter} says: {error}."
            " Run sam3-export in the build container of docker-compose.yml, name a Python that has it with"
            " --tensorrt-python, or use --engine onnxruntime"
        ) from error

    def build(module: nn.Module, model: ModelSpec, variant: Variant, path: Path) -> Mapping[str, Any]:
        return build_plan(module, model, variant, path, settings)

    shaping = {"level": settings.level, "workspace_mb": settings.workspace_mb}
    refused = {}
    if about["tensorrt"].startswith("8."):
        refused["int8_fp16"] = (
            f"precision int8 needs TensorRT 10 or 11, whose networks have the types of their graph, got"
            f" {about['tensorrt']}; name another Python with --tensorrt-python, or use --precision fp16"
        )
    return Tool(ENGINE, build, lambda path: open_plan(path, settings), about, shaping, refused)


ENGINE = Engine(
    ENGINES["tensorrt"],
    Style("chunked", "subpixel", spelled_norms=True),
    code=("engines/tensorrt", *CODE),
    ready=ready,
    in_int8=in_int8,
)
