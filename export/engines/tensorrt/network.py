"""What differs between TensorRT 8.6, 10 and 11, and what a plan says about itself: network flags, pinned precisions,
the profile, the inspector's summary.

TensorRT 10 and 11 build strongly typed networks: the precision is in the graph, fp16 tensors with casts around the fp32
islands that `export/sub_models/precision.py` names. TensorRT 8.6, the one older branch, has no strong typing: fp16 is a
flag there, and every layer whose result the graph keeps in fp32 is pinned to it. Standard library only, Python 3.10;
`trt` is the imported package.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ensemble.records import ModelSpec, TensorSpec
from export.engines.tensorrt.cuda_driver import Device

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of one input."""
MAKER = "8.6", "10.", "11."
"""Versions that this was written for."""


class PlanError(RuntimeError):
    """The plan cannot be built, opened or run; the message says what was expected and what to do."""


def import_tensorrt() -> Any:
    """The package `tensorrt`; or `tensorrt_bindings`, which is all that the pip packages of the bindings alone bring.
    Raises ImportError."""
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError:
        if importlib.util.find_spec("tensorrt_bindings") is None:
            raise
        return importlib.import_module("tensorrt_bindings")


def built_for(trt: Any, device: Device) -> dict[str, str]:
    """What a plan is bound to: `tensorrt`, `gpu`, `compute_capability`, and the `cuda_driver` that it was built
    with."""
    return {"tensorrt": str(trt.__version__), **device.facts}


def create_network(trt: Any, builder: Any) -> tuple[Any, bool]:
    """(an empty network, whether it is strongly typed). TensorRT 11 knows only strong typing, 10 has it as a flag, 8.6
    has not."""
    if not trt.__version__.startswith(MAKER):
        raise PlanError(
            f"expected TensorRT 8.6, 10 or 11, got {trt.__version__}; name another Python with --tensorrt-python"
        )
    kinds = trt.NetworkDefinitionCreationFlag
    if trt.__version__.startswith("8.6"):
        return builder.create_network(1 << int(kinds.EXPLICIT_BATCH)), False
    return builder.create_network(1 << int(kinds.STRONGLY_TYPED) if hasattr(kinds, "STRONGLY_TYPED") else 0), True


def set_dtypes(trt: Any, network: Any, model: ModelSpec) -> None:
    """TensorRT 8.6: inputs and outputs of the record's dtypes, whatever the graph calls them."""
    wanted = {t.name: t.dtype for t in (*model.inputs, *model.outputs)}
    tensors = [network.get_input(i) for i in range(network.num_inputs)] + [
        network.get_output(i) for i in range(network.num_outputs)
    ]
    for tensor in tensors:
        if wanted.get(tensor.name) == "FP16":
            tensor.dtype = trt.float16


def pin_precisions(trt: Any, network: Any, config: Any, dtypes: Mapping[str, str]) -> int:
    """TensorRT 8.6, fp16: that precision is allowed, but layers whose result `dtypes` calls FP32 stay in fp32. Returns
    how many do.

    `dtypes` is what `export/engines/tensorrt/v8.py` prescribes of the graph's tensors; the network itself calls all of
    them fp32. One operator may become several layers, of which only the last gives a tensor that the graph names: those
    before it follow it. The other layers are left to the builder.
    """
    config.set_flag(trt.BuilderFlag.FP16)
    if not dtypes:
        return 0
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    kinds = trt.LayerType
    untouched = (
        kinds.CONSTANT,
        kinds.SHAPE,
        kinds.CAST,
        kinds.IDENTITY,
        kinds.PLUGIN_V2,
    )  # a plugin says itself what it can do
    pinned = 0
    waiting: list[Any] = []
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if layer.type not in untouched and outputs and outputs[0].dtype == trt.float32:
            waiting.append(layer)
        known = [dtypes[output.name] for output in outputs if output.name in dtypes]
        if known:
            for one in waiting if known[0] == "FP32" else ():
                one.precision = trt.float32
                pinned += 1
            waiting = []
    return pinned


def profile_shapes(model: ModelSpec) -> dict[str, Shapes]:
    """The optimisation profile: for each input the smallest, usual and largest shape, read off the specification's
    axes."""

    def at(tensor: TensorSpec, bound: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else getattr(d, bound) for d in tensor.dims)

    return {t.name: (at(t, "minimum"), at(t, "optimum"), at(t, "maximum")) for t in model.inputs if t.axes}


def check_names(network: Any, model: ModelSpec) -> None:
    """TensorRT renames nothing, so names that differ mean that the ONNX file belongs to another model. Raises
    PlanError."""
    for kind, count, get, tensors in (
        ("inputs", network.num_inputs, network.get_input, model.inputs),
        ("outputs", network.num_outputs, network.get_output, model.outputs),
    ):
        got, expected = {get(i).name for i in range(count)}, {t.name for t in tensors}
        if not expected <= got or (
            kind == "inputs" and got != expected
        ):  # `export/gate/locate.py` asks for more outputs
            raise PlanError(
                f"{model.name}: expected {kind} {sorted(expected)}, the ONNX file has {sorted(got)}; export it again"
            )


def check_dtypes(trt: Any, engine: Any, model: ModelSpec) -> None:
    """Triton wants the plan's dtypes to be the configuration's exactly. Raises PlanError where one is not."""
    kinds = {"FP32": trt.float32, "FP16": trt.float16, "INT32": trt.int32, "UINT8": trt.uint8}
    for tensor in (*model.inputs, *model.outputs):
        got = engine.get_tensor_dtype(tensor.name)
        if got != kinds[tensor.dtype]:
            raise PlanError(
                f"{model.name}: expected {tensor.name} as {tensor.dtype}, the plan has {got}; this TensorRT changed the"
                " graph's types"
            )


def activation_bytes(engine: Any) -> int:
    """What a context of a plan's largest shapes needs beside weights, inputs and outputs. TensorRT 8.6 and 11 each know
    one of the two names, 10 both."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def summary(trt: Any, engine: Any) -> dict[str, dict[str, int]]:
    """How many of the plan's layers are of each type (`layer_types`) and give each data type (`precisions`), by
    TensorRT's inspector."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return summarise(json.loads(text, strict=False)["Layers"])  # 8.6 leaves line breaks inside its strings


def summarise(layers: list[Any]) -> dict[str, dict[str, int]]:
    """`summary` of the inspector's list of layers."""
    types: Counter[str] = Counter()
    precisions: Counter[str] = Counter()
    for layer in layers:
        types[layer["LayerType"]] += 1
        for output in layer["Outputs"][:1]:
            found = re.search(
                r"\b(FP32|FP16|BF16|FP8|INT8|INT32|INT64|UINT8|BOOL|Float|Half|Int32|Bool)\b",
                output.get("Format/Datatype", ""),
            )
            precisions[found[1] if found else "other"] += 1
    return {"layer_types": dict(types.most_common()), "precisions": dict(precisions.most_common())}


def progress_monitor(trt: Any, name: str, report: Callable[[str], None]) -> Any:
    """TensorRT 10's progress, one line per phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            report(f"{name}: {phase_name} ({num_steps} steps)")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
