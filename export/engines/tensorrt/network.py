"""Facts and checks of a network and its plan: names, shapes, dtypes, the machine it is for, the layers it has.

Standard library only, Python 3.10; `trt` is the imported package.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import re
from collections import Counter
from typing import Any

from ensemble.records import ModelSpec, TensorSpec
from export.engines.tensorrt.cuda_driver import Device

log = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of one input."""


class PlanError(RuntimeError):
    """The plan cannot be built, opened or run; the message says what was expected and what to do."""


def import_tensorrt() -> Any:
    """The package `tensorrt`, or `tensorrt_bindings` where the bindings alone are installed. Raises ImportError."""
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError:
        if importlib.util.find_spec("tensorrt_bindings") is None:
            raise
        return importlib.import_module("tensorrt_bindings")


def built_for(trt: Any, device: Device) -> dict[str, str]:
    """What a plan is bound to: `tensorrt`, `gpu`, `compute_capability`, and the `cuda_driver` it was built with."""
    return {"tensorrt": str(trt.__version__), **device.facts}


def profile_shapes(model: ModelSpec) -> dict[str, Shapes]:
    """The optimisation profile: for each input the smallest, usual and largest shape, from the record's axes."""

    def at(tensor: TensorSpec, bound: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else getattr(d, bound) for d in tensor.dims)

    return {t.name: (at(t, "minimum"), at(t, "optimum"), at(t, "maximum")) for t in model.inputs if t.axes}


def fix_single_sizes(network: Any, model: ModelSpec) -> None:
    """Tells TensorRT which dynamic dimensions have one size only, as that of frames with `--max-batch 1`: it computes
    nothing at run time for those."""
    shapes = profile_shapes(model)
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        smallest, _, largest = shapes.get(tensor.name, ((), (), ()))
        if smallest:
            tensor.shape = tuple(a if a == b else -1 for a, b in zip(smallest, largest, strict=True))


def check_names(network: Any, model: ModelSpec) -> None:
    """Raises PlanError where names differ from the record's: TensorRT renames nothing, so the ONNX file is another
    model's."""
    for kind, count, get, tensors in (
        ("inputs", network.num_inputs, network.get_input, model.inputs),
        ("outputs", network.num_outputs, network.get_output, model.outputs),
    ):
        got, expected = {get(i).name for i in range(count)}, {t.name for t in tensors}
        more = got - expected if kind == "inputs" else set()  # `export/gate/locate.py` asks for more outputs
        if not expected <= got or more:
            raise PlanError(
                f"{model.name}: expected {kind} {sorted(expected)}, the ONNX file has {sorted(got)}; export it again"
            )


def dtype_names(trt: Any) -> dict[Any, str]:
    """TensorRT's dtypes -> the specification's names."""
    return {trt.float32: "FP32", trt.float16: "FP16", trt.int32: "INT32", trt.uint8: "UINT8"}


def check_network_dtypes(trt: Any, network: Any, model: ModelSpec) -> None:
    """Raises PlanError where an input or output of a typed network, from which a plan's cannot differ, is not of the
    record's dtype."""
    ends = [network.get_input(i) for i in range(network.num_inputs)]
    ends += [network.get_output(i) for i in range(network.num_outputs)]
    got = {tensor.name: dtype_names(trt).get(tensor.dtype, str(tensor.dtype)) for tensor in ends}
    for tensor in (*model.inputs, *model.outputs):
        if got[tensor.name] != tensor.dtype:
            raise PlanError(
                f"{model.name}: expected {tensor.name} as {tensor.dtype}, the graph has {got[tensor.name]}; export it"
                " again"
            )


def check_dtypes(trt: Any, engine: Any, model: ModelSpec) -> None:
    """Raises PlanError where a dtype of the plan is not the record's: Triton compares them with the configuration's."""
    for tensor in (*model.inputs, *model.outputs):
        got = engine.get_tensor_dtype(tensor.name)
        if dtype_names(trt).get(got) != tensor.dtype:
            raise PlanError(
                f"{model.name}: expected {tensor.name} as {tensor.dtype}, the plan has {got}; this TensorRT changed the"
                " graph's types"
            )


def summary(trt: Any, engine: Any) -> dict[str, dict[str, int]]:
    """How many of the plan's layers TensorRT's inspector finds of each type (`layer_types`) and with each data type
    as their result (`precisions`)."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return summarise(json.loads(text, strict=False)["Layers"])  # there may be line breaks inside its strings


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


def progress_monitor(trt: Any, name: str) -> Any:
    """TensorRT 10's progress, one log line for each phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            log.info("%s: %s (%d steps)", name, phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
