"""A sub-model and its record in `ensemble/spec.py` in, `model.pt2` out: PyTorch compiled ahead of time, weights and GPU kernels inside, no Python needed to run.

The graph is exported with the record's varying axes and compiled once for all their sizes; nothing is tuned by trial, so building takes a minute or two
and gives the same file each time. A package fits the GPU generation and the PyTorch version that it was made with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensemble.aoti import SIGNATURE, AotiRunner
from ensemble.spec import Model
from export.onnx_graph import sample_inputs
from export.reference import Arrays
from export.verify import Run


def build_package(module: nn.Module, model: Model, path: Path, device: str = "cuda") -> Path:
    """Compiles `module` (a wrapper of this folder, in eval mode) for `device` and writes it to `path`, which it returns.

    Raises ValueError if the module's outputs are not the record's in number, dtype or shape.
    """
    module = module.eval().to(device)
    samples = {name: tensor.to(device) for name, tensor in sample_inputs(model).items()}
    with torch.no_grad():
        program = torch.export.export(
            module, tuple(samples.values()), dynamic_shapes=tuple(dynamic_shapes(model, samples).values())
        )
        check_outputs(program, model)
        outputs, host = [t.name for t in model.outputs], [t.name for t in model.outputs if t.host]
        signature = {"inputs": list(samples), "outputs": outputs, "host": host}
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"aot_inductor.metadata": {SIGNATURE: json.dumps(signature)}}
        )
    return path


def dynamic_shapes(model: Model, samples: dict[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    """Input name -> position -> `torch.export.Dim`, with each axis' limits widened to the sample's size (which is at least 2)."""
    dims: dict[str, Any] = {}
    for tensor in model.inputs:
        for i, axis in tensor.axes.items():
            largest = max(axis.maximum, samples[tensor.name].shape[i])
            dims.setdefault(axis.name, torch.export.Dim(axis.name, min=axis.minimum, max=largest))
    return {tensor.name: {i: dims[axis.name] for i, axis in tensor.axes.items()} for tensor in model.inputs}


def check_outputs(program: torch.export.ExportedProgram, model: Model) -> None:
    """Raises ValueError unless the program's outputs are the record's: number, dtypes, fixed sizes, contiguous."""
    names = {torch.float32: "FP32", torch.float16: "FP16", torch.uint8: "UINT8", torch.int32: "INT32"}
    found = []
    for node in program.graph.output_node().args[0]:
        value = node.meta["val"]
        found.append((names.get(value.dtype, str(value.dtype)), [int(s) if isinstance(s, int) else "?" for s in value.shape]))
    expected = [(t.dtype, [d if isinstance(d, int) else "?" for d in t.dims]) for t in model.outputs]
    if found != expected:
        raise ValueError(f"{model.name}: expected outputs {expected}, got {found}; ensemble/spec.py and the wrapper disagree")


def open_package(path: Path, device_id: int | None = 0) -> Run:
    """A function from arrays to arrays that runs the package on that GPU, or on the CPU for None."""
    runner = AotiRunner(path, device_id)

    def run(arrays: Arrays) -> dict[str, Any]:
        results = runner({name: torch.from_numpy(array) for name, array in arrays.items()})
        return {name: result.cpu().numpy() for name, result in results.items()}

    return run
