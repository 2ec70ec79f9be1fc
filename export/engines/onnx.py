"""ONNX files of sub-models, with the names, dtypes and varying axes of their records in `ensemble/spec.py`.

Batch, pairs, tokens, rows and picks vary from call to call; everything else is a constant of the variant. The operator
set is fixed, so that every engine that reads the files knows what to expect.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

from ensemble.records import NUMPY_DTYPES, Axis, ModelSpec

OPSET = 18
"""LayerNormalization keeps its fp32 statistics (17) and the exporter writes nothing lower (18)."""
SINGLE_FILE_BYTES = 1_500_000_000
"""A protobuf ends at 2 GiB and the exporter stops short of it; more weights than this go to `model.onnx.data` beside
the graph."""

TORCH_DTYPES = {name: getattr(torch, dtype) for name, dtype in NUMPY_DTYPES.items()}


def sample_inputs(model: ModelSpec) -> dict[str, torch.Tensor]:
    """Inputs for tracing: every varying axis has a size of its own, at least 2, because 0 and 1 would be taken for
    constants."""
    axes = {axis.name: axis for t in model.inputs for axis in t.axes.values()}
    sizes = {name: max(axis.minimum, 2) + i for i, (name, axis) in enumerate(axes.items())}
    samples = {}
    for tensor in model.inputs:
        dtype = TORCH_DTYPES[tensor.dtype]
        fill = 0.25 if dtype.is_floating_point else 0 if "index" in tensor.name else 1
        samples[tensor.name] = torch.full(tensor.shape(**sizes), fill, dtype=dtype)
    return samples


def export_onnx(module: nn.Module, model: ModelSpec, path: Path) -> Path:
    """Writes `module` (a sub-model, in eval mode) to `path` and checks the file. Returns `path`.

    Raises ValueError if the graph's inputs or outputs differ from the record's in name, dtype or order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = sample_inputs(model)
    dims: dict[str, torch.export.Dim] = {}
    shapes = {
        tensor.name: {i: dims.setdefault(axis.name, torch.export.Dim(axis.name)) for i, axis in tensor.axes.items()}
        for tensor in model.inputs
    }
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(samples.values()),
            input_names=[t.name for t in model.inputs],
            output_names=[t.name for t in model.outputs],
            dynamic_shapes=tuple(shapes.values()),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=_weight_bytes(module) > SINGLE_FILE_BYTES)
    onnx.checker.check_model(str(path))
    check_graph(path, model)
    return path


def check_graph(path: Path, model: ModelSpec) -> None:
    """Raises ValueError unless the file's inputs and outputs are the record's: names, dtypes, fixed sizes, and which
    dimensions vary."""
    graph = onnx.load(str(path), load_external_data=False).graph
    for kind, values, tensors in (("input", graph.input, model.inputs), ("output", graph.output, model.outputs)):
        found = [_describe(v) for v in values]
        expected = [(t.name, t.dtype, tuple("?" if isinstance(d, Axis) else d for d in t.dims)) for t in tensors]
        if found != expected:
            raise ValueError(
                f"{path.name} of {model.name}: expected {kind}s {expected}, got {found}; ensemble/spec.py and the"
                " wrapper disagree"
            )


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    names = {"FLOAT": "FP32", "FLOAT16": "FP16"}
    dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dims = tuple(d.dim_value if d.HasField("dim_value") else "?" for d in value.type.tensor_type.shape.dim)
    return value.name, names.get(dtype, dtype), dims


def _weight_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's progress lines and notes about its own internals; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
