"""What the versions of TensorRT differ in.

TensorRT 10 and 11 build strongly typed networks: the precision is in the graph, fp16 tensors with casts around the fp32
islands that `export/sub_models/precision.py` names. Only `export/engines/tensorrt/v8.py` knows of TensorRT 8.6, and
only `version_of` knows of that file: deleting it, and its test, ends the support of that version.
Standard library only, Python 3.10; `trt` is the imported package.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.records import ModelSpec
from export.engines.tensorrt.network import PlanError, check_network_dtypes

if TYPE_CHECKING:
    from torch import nn

OLDER = "export.engines.tensorrt.v8"
"""The module of TensorRT 8.6, whose `Version8` is a `Version`."""


class Version:
    """TensorRT 10 and 11."""

    name = "TensorRT"

    timing_caches = True
    """Whether kernel timings of earlier builds can be read again."""

    def write_graph(self, module: nn.Module, model: ModelSpec, path: Path) -> None:
        """Writes the ONNX file that plans are built from; runs where PyTorch is."""
        from export.engines.onnx import export_onnx

        export_onnx(module, model, path)

    def create_network(self, trt: Any, builder: Any) -> Any:
        """An empty network. TensorRT 11 knows only strong typing, 10 has a flag for it."""
        kinds = trt.NetworkDefinitionCreationFlag
        return builder.create_network(1 << int(kinds.STRONGLY_TYPED) if hasattr(kinds, "STRONGLY_TYPED") else 0)

    def configure(self, trt: Any, network: Any, config: Any, model: ModelSpec, precision: str, onnx: Path) -> None:
        """Tells the builder in which precision to compute the network that was parsed from `onnx`."""
        check_network_dtypes(trt, network, model)
        config.clear_flag(trt.BuilderFlag.TF32)  # what the graph keeps in fp32 is meant to be fp32

    def activation_bytes(self, engine: Any) -> int:
        """Bytes that a context of a plan's largest shapes needs beside weights, inputs and outputs."""
        return int(engine.device_memory_size_v2)


def version_of(number: str) -> Version:
    """The version that a TensorRT with this number is of. Raises PlanError for one that this was not written for."""
    if number.startswith("8.6") and importlib.util.find_spec(OLDER):
        return importlib.import_module(OLDER).Version8()
    if not (10, 1) <= tuple(int(part) for part in number.split(".")[:2]) < (12, 0):
        raise PlanError(f"expected TensorRT 10.1 to 11, got {number}; name another Python with --tensorrt-python")
    return Version()
