"""PyTorch compiled ahead of time: packages (`model.pt2`) with weights and GPU kernels inside, which need none of the
export's Python to run.

The graph is exported with the varying axes of its record in `ensemble/spec.py` and compiled once for all their sizes;
nothing is tuned by trial, so building takes a minute or two and gives the same file each time. A package fits the GPU
generation and the PyTorch version that it was made with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensemble.engines.aoti import SIGNATURE, AotiRunner
from ensemble.records import ModelSpec
from ensemble.spec import ENGINES, Variant
from export.engines.engine import Engine, EngineError, Tool
from export.engines.onnx import TORCH_DTYPES, sample_inputs
from export.engines.tensorrt.settings import TensorRT
from export.gate.reference import Arrays
from export.gate.verify import Run
from export.slim.fp8 import in_fp8
from export.sub_models.parts import Style

OLDEST_GPU = (8, 0)
"""Ampere: on older GPUs the kernels' blocks do not fit in shared memory, and Triton writes no matrix instructions."""

OLDEST_FP8_GPU = (8, 9)
"""Ada: the first that multiplies E4M3."""


class PackageError(RuntimeError):
    """A package cannot be made here; the message says why and what to do."""


def build_apart(module: nn.Module, model: ModelSpec, variant: Variant, path: Path, device: str = "cuda") -> None:
    """Runs `build_package` and a first call of its package in a process of its own: several can be built at once, and a
    package that crashes when it is loaded does not end the export. Raises PackageError.
    """
    saved = path.with_suffix(".module")
    torch.save(module, saved)
    try:
        command = [sys.executable, "-X", "faulthandler", "-m", "export.engines.aoti", str(saved), model.part]
        paths = filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
        done = subprocess.run(
            [*command, json.dumps(variant.to_dict()), str(path), device],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        saved.unlink()
    if done.returncode == -signal.SIGSEGV:
        compiler = os.environ.get("CXX", "g++")
        raise PackageError(
            f"{model.name}: the compiled package ended its process (segmentation fault) when it was loaded; {compiler}"
            " probably links libstdc++ statically, which must not be there twice: set CXX to the system's compiler,"
            " CXX=/usr/bin/g++, and export again"
        )
    if done.returncode:
        raise PackageError(f"{model.name}: PyTorch could not compile it: {done.stderr.strip()[-1500:]}")


def main(argv: Sequence[str] | None = None) -> int:
    """What `build_apart` runs. Arguments: a saved module, its part's name, its variant as JSON, the file to write and
    the device."""
    saved, part, variant, path, device = sys.argv[1:] if argv is None else argv
    model = getattr(Variant.from_dict(json.loads(variant)), part)
    module = torch.load(saved, weights_only=False)  # written by our own parent process
    build_package(module, model, Path(path), device)
    for result in AotiRunner(Path(path), 0 if device == "cuda" else None)(sample_inputs(model)).values():
        result.cpu()  # waits for the GPU, whose errors come late
    return 0


def build_package(module: nn.Module, model: ModelSpec, path: Path, device: str = "cuda") -> Path:
    """Compiles `module` (a sub-model) for `device` and writes it to `path`, which it returns.

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
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {SIGNATURE: json.dumps(signature)}},
        )
    return path


def dynamic_shapes(model: ModelSpec, samples: dict[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    """Input name -> position -> `torch.export.Dim`, with each axis' limits widened to the sample's size (which is at
    least 2)."""
    dims: dict[str, Any] = {}
    for tensor in model.inputs:
        for i, axis in tensor.axes.items():
            largest = max(axis.maximum, samples[tensor.name].shape[i])
            dims.setdefault(axis.name, torch.export.Dim(axis.name, min=axis.minimum, max=largest))
    return {tensor.name: {i: dims[axis.name] for i, axis in tensor.axes.items()} for tensor in model.inputs}


def check_outputs(program: torch.export.ExportedProgram, model: ModelSpec) -> None:
    """Raises ValueError unless the program's outputs are the record's: number, dtypes, fixed sizes, contiguous."""
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    found = []
    for node in program.graph.output_node().args[0]:
        value = node.meta["val"]
        sizes = [int(s) if isinstance(s, int) else "?" for s in value.shape]
        found.append((names.get(value.dtype, str(value.dtype)), sizes))
    expected = [(t.dtype, [d if isinstance(d, int) else "?" for d in t.dims]) for t in model.outputs]
    if found != expected:
        raise ValueError(
            f"{model.name}: expected outputs {expected}, got {found}; ensemble/spec.py and the wrapper disagree"
        )


def open_package(path: Path, device_id: int | None = 0) -> Run:
    """A function from arrays to arrays that runs the package on that GPU, or on the CPU for None."""
    runner = AotiRunner(path, device_id)

    def run(arrays: Arrays) -> dict[str, Any]:
        results = runner({name: torch.from_numpy(array) for name, array in arrays.items()})
        return {name: result.cpu().numpy() for name, result in results.items()}

    return run


def build(module: nn.Module, model: ModelSpec, variant: Variant, path: Path) -> Mapping[str, Any]:
    """Builds the package of `module` for this GPU at `path`; there is nothing to tell of it."""
    build_apart(module, model, variant, path)
    return {}


def ready(_: TensorRT) -> Tool:
    """Raises EngineError where PyTorch finds no GPU, or one that is too old."""
    if not torch.cuda.is_available():
        raise EngineError(
            "engine aoti compiles for a CUDA GPU and PyTorch finds none here; run on the GPU host, or use --engine"
            " onnxruntime"
        )
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    oldest, found = (".".join(map(str, c)) for c in (OLDEST_GPU, capability))
    if capability < OLDEST_GPU:
        raise EngineError(
            f"engine aoti's kernels need a GPU of compute capability {oldest} or later, {name} has {found}; use"
            " --engine tensorrt or --engine onnxruntime"
        )
    refused = {}
    if capability < OLDEST_FP8_GPU:
        refused["fp8"] = (
            "precision fp8 needs a GPU of compute capability 8.9 or later (Ada, Hopper, Blackwell),"
            f" {name} has {found}; use --precision fp16"
        )
    return Tool(ENGINE, build, open_package, {"gpu": name, "compute_capability": found}, refused=refused)


ENGINE = Engine(
    ENGINES["aoti"],
    Style("fused", "subpixel", kernels=True),
    code=("engines/aoti.py", "fused", "slim/fp8.py"),
    ready=ready,
    in_fp8=in_fp8,
    side_by_side=True,
)


if __name__ == "__main__":
    sys.exit(main())
