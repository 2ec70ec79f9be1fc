"""A sub-model's ONNX graph in, a TensorRT plan for the GPU of this machine out.

TensorRT 10 and 11 build strongly typed networks: the precision is in the graph, fp16 tensors with casts around the fp32 islands that `export/precision.py`
names. TensorRT 8.6, the one older branch, has no strong typing: fp16 is a flag there, and every layer that the graph computes in fp32 is pinned to it.
Importable with nothing but `tensorrt` installed, on Python 3.10: a machine that builds plans from ready ONNX files needs no PyTorch
(`python -m export.tensorrt_plan --help`). A plan runs on the TensorRT version and the kind of GPU that built it, and on no other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.spec import Model, Tensor, Variant

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of one input."""


class PlanError(RuntimeError):
    """The plan cannot be built or opened; the message says what was expected and what to do."""


@dataclass(frozen=True)
class PlanOptions:
    """`workspace_mb` is scratch memory a layer may use; `level` is TensorRT's builder optimisation level, 0 to 5, where 5 takes the longest."""

    workspace_mb: int = 4096
    level: int = 3
    timing_cache: Path | None = None


@dataclass(frozen=True)
class PlanInfo:
    """What was built, for the manifest."""

    tensorrt: str
    gpu: str
    compute_capability: str
    seconds: float
    megabytes: float
    layers: int
    strongly_typed: bool


def profile_shapes(model: Model) -> dict[str, Shapes]:
    """The optimisation profile: for each input the smallest, usual and largest shape, read off the specification's axes."""

    def at(tensor: Tensor, bound: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else getattr(d, bound) for d in tensor.dims)

    return {t.name: (at(t, "minimum"), at(t, "optimum"), at(t, "maximum")) for t in model.inputs if t.axes}


def compile_onnx(
    onnx: Path, model: Model, plan: Path, options: PlanOptions | None = None, report: Callable[[str], None] = lambda line: None
) -> PlanInfo:
    """Builds `plan` from `onnx`. Raises PlanError with the parser's own words where TensorRT cannot read the graph, or where the build fails."""
    import tensorrt as trt

    options = options or PlanOptions()
    start = time.perf_counter()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags, typed = _creation_flags(trt)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(min(3, parser.num_errors)))
        raise PlanError(f"{model.name}: TensorRT {trt.__version__} cannot read {onnx}: {reasons}")
    _check_names(network, model)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector and the profiler then name the layers
    profile = builder.create_optimization_profile()
    for name, shapes in profile_shapes(model).items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    if not typed:
        pinned = _pin_precisions(trt, network, config)
        report(f"{model.name}: TensorRT {trt.__version__} has no strong typing; {pinned} layers pinned to fp32")
    cache = _load_timing_cache(config, options.timing_cache)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, model.name, report)
    report(f"{model.name}: building")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise PlanError(
            f"{model.name}: TensorRT {trt.__version__} built no plan; with less GPU memory free than it needs, lower --max-batch, --max-pairs"
            " or --workspace-mb"
        )
    plan.write_bytes(bytes(serialized))
    if cache is not None and options.timing_cache is not None:
        options.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    gpu, capability = _gpu(trt)
    return PlanInfo(
        str(trt.__version__), gpu, capability, time.perf_counter() - start, plan.stat().st_size / 1e6, network.num_layers, typed
    )


def build_plan(module: nn.Module, model: Model, path: Path) -> PlanInfo:
    """The engine interface of `export/engines.py`: torch module -> ONNX -> plan. The ONNX file is removed again."""
    from export.onnx_graph import export_onnx

    onnx = path.with_suffix(".onnx")
    export_onnx(module, model, onnx)
    try:
        return compile_onnx(onnx, model, path, PlanOptions(timing_cache=path.parent / "timing.cache"))
    finally:
        for leftover in (onnx, onnx.with_name(onnx.name + ".data"), path.parent / "timing.cache"):
            leftover.unlink(missing_ok=True)


def open_plan(path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A plan as a function from NumPy arrays to NumPy arrays, with memory from PyTorch. Raises PlanError for a plan of another TensorRT or GPU."""
    import tensorrt as trt
    import torch

    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        gpu, capability = _gpu(trt)
        raise PlanError(
            f"{path} was not built by TensorRT {trt.__version__} on a GPU like {gpu} (compute capability {capability});"
            " build it here with sam3-export --engine tensorrt --force"
        )
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    types = {trt.float32: torch.float32, trt.float16: torch.float16, trt.int32: torch.int32, trt.uint8: torch.uint8}

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        held = {n: torch.from_numpy(arrays[n]).to("cuda", types[engine.get_tensor_dtype(n)]).contiguous() for n in inputs}
        for name, tensor in held.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise PlanError(f"{path.parent.parent.name}: {name} of shape {list(tensor.shape)} is outside the plan's profile")
        for name in names:
            if name not in held:
                shape = tuple(context.get_tensor_shape(name))
                held[name] = torch.empty(shape, dtype=types[engine.get_tensor_dtype(name)], device="cuda")
            context.set_tensor_address(name, held[name].data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(stream.cuda_stream):
            raise PlanError(f"{path.parent.parent.name}: the plan did not run; see TensorRT's log above")
        stream.synchronize()
        return {n: held[n].cpu().numpy() for n in names if n not in inputs}

    return run


# ---- what differs between the versions
def _creation_flags(trt: Any) -> tuple[int, bool]:
    """(flags, whether the network is strongly typed). TensorRT 11 knows only strong typing, 10 has it as a flag, 8.6 has not."""
    major = int(trt.__version__.split(".")[0])
    kinds = trt.NetworkDefinitionCreationFlag
    if major >= 10:
        return (1 << int(kinds.STRONGLY_TYPED) if hasattr(kinds, "STRONGLY_TYPED") else 0), True
    if not trt.__version__.startswith("8.6"):
        raise PlanError(f"expected TensorRT 8.6, 10 or 11, got {trt.__version__}")
    return 1 << int(kinds.EXPLICIT_BATCH), False


def _pin_precisions(trt: Any, network: Any, config: Any) -> int:
    """TensorRT 8.6: fp16 allowed, but a layer whose result the graph keeps in fp32 stays in fp32. Returns how many do."""
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    # The cuBLAS and cuDNN tactics of 8.6 want library versions that current GPU hosts do not have; its own kernels cover these graphs.
    config.set_tactic_sources(1 << int(trt.TacticSource.JIT_CONVOLUTIONS) | 1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS))
    pinned = 0
    untouched = (trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.CAST, trt.LayerType.IDENTITY)
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if layer.type not in untouched and outputs and all(o.dtype == trt.float32 for o in outputs):
            layer.precision = trt.float32
            pinned += 1
    return pinned


def _check_names(network: Any, model: Model) -> None:
    """TensorRT renames nothing, so names that differ mean that the ONNX file belongs to another model. Raises PlanError."""
    for kind, count, get, tensors in (
        ("inputs", network.num_inputs, network.get_input, model.inputs),
        ("outputs", network.num_outputs, network.get_output, model.outputs),
    ):
        got, expected = {get(i).name for i in range(count)}, {t.name for t in tensors}
        if got != expected:
            raise PlanError(f"{model.name}: expected {kind} {sorted(expected)}, the ONNX file has {sorted(got)}; export it again")


def _load_timing_cache(config: Any, path: Path | None) -> Any:
    """Timings of earlier builds on this machine make the next one faster; None where no cache is wanted."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, False)
    return cache


def _monitor(trt: Any, name: str, report: Callable[[str], None]) -> Any:
    """TensorRT's progress, one line per phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            report(f"{name}: {phase_name} ({num_steps} steps)")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _gpu(trt: Any) -> tuple[str, str]:
    """(name, compute capability) of GPU 0, through PyTorch where it is installed; TensorRT's bindings do not tell."""
    try:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(0), ".".join(map(str, torch.cuda.get_device_capability(0)))
    except ImportError:
        pass
    return "unknown", "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m export.tensorrt_plan`: one ready ONNX file -> one plan, where TensorRT is but PyTorch is not."""
    parser = argparse.ArgumentParser(prog="python -m export.tensorrt_plan", description=main.__doc__)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--part", required=True, help="vision_encoder, text_encoder, geometry_encoder, decoder or mask_head")
    parser.add_argument(
        "--variant", required=True, help='the variant as JSON, as in the front model\'s config.pbtxt; "{}" is the default'
    )
    parser.add_argument("--workspace-mb", type=int, default=PlanOptions.workspace_mb)
    parser.add_argument("--level", type=int, default=PlanOptions.level, choices=range(6))
    parser.add_argument("--timing-cache", type=Path)
    options = parser.parse_args(argv)
    variant = Variant.from_dict(json.loads(options.variant))
    model = next((m for m in variant.sub_models if m.part == options.part), None)
    if model is None:
        parser.error(f"--part must be one of {', '.join(m.part for m in variant.sub_models)}, got {options.part!r}")
    try:
        built = compile_onnx(
            options.onnx,
            model,
            options.plan,
            PlanOptions(options.workspace_mb, options.level, options.timing_cache),
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    except PlanError as error:
        print(f"tensorrt_plan: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"plan": str(options.plan), "model": model.name, **asdict(built)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
