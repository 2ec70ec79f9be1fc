"""What a builder of TensorRT for RTX says of the plan that it makes: its layers with the types of their tensors, and
the memory that it computes in.

TensorRT's inspector says the same, but only of a plan that is open, on a GPU. The builder writes it to its log, so it
is known on every machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from ensemble.records import ModelSpec
from ensemble.spec import MB
from export.engines.tensorrt.network import PlanError

DTYPES = {"Float": "FP32", "Half": "FP16", "Int32": "INT32", "UInt8": "UINT8"}
"""The listing's names -> the specification's."""
FUSED_ATTENTION = "mha"
"""In the names of layers that compute attention in one piece."""
TENSOR = re.compile(r"\{ Name: (.+?), Dimensions: .*?, Datatype: (\w+)")


class Layer(NamedTuple):
    """One layer of a plan: its tensors' dtypes by name, and the operators of the graph that went into it."""

    name: str
    kind: str
    tensors: dict[str, str]
    operators: frozenset[str]


class BuildLog:
    """A logger for TensorRT, `logger`, which keeps errors and what the builder says of the plan."""

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.scratch_mb: float | None = None
        self._listing = ""
        self._worst = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                outer.note(severity, message)

        self.logger = Logger()

    def note(self, severity: Any, message: str) -> None:
        """One line of TensorRT's log."""
        if severity in self._worst:
            self.errors.append(message.strip())
        elif message.startswith("Layers:"):
            self._listing = message
        elif found := re.match(r"Total Activation Memory: (\d+) bytes", message):
            self.scratch_mb = round(int(found[1]) / MB, 1)

    @property
    def layers(self) -> list[Layer]:
        """The plan's layers, in the order in which they run."""
        return list(parse(self._listing))


def parse(listing: str) -> Iterator[Layer]:
    for line in listing.splitlines():
        if found := re.match(r"Name: (.+?), LayerType: (\w+),", line):
            _, _, metadata = line.rpartition("Metadata: ")
            operators = frozenset(re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata))
            yield Layer(found[1], found[2], dict(TENSOR.findall(line)), operators)


def check_layers(layers: list[Layer], model: ModelSpec, islands: set[str]) -> None:
    """Raises PlanError where an input or output is not of the record's dtype, and where one of the operators `islands`,
    which the graph computes in fp32, is in no layer with fp32 tensors."""
    seen = {name: dtype for layer in layers for name, dtype in layer.tensors.items()}
    for tensor in (*model.inputs, *model.outputs):
        got = seen.get(tensor.name)
        if got is not None and DTYPES.get(got, got) != tensor.dtype:
            raise PlanError(
                f"{model.name}: expected {tensor.name} as {tensor.dtype}, the plan has {DTYPES.get(got, got)}; this"
                " TensorRT changed the graph's types"
            )
    wide = {operator for layer in layers if "Float" in layer.tensors.values() for operator in layer.operators}
    if islands - wide:
        raise PlanError(
            f"{model.name}: expected {', '.join(sorted(islands - wide)[:3])} in fp32, as the graph says, the plan has"
            " no fp32 tensor there; this TensorRT changed the graph's types"
        )


def summary(layers: list[Layer]) -> dict[str, Any]:
    """For the manifest: layers by type, and how many compute attention in one piece, which has been wrong on some
    cards before (NVIDIA/TensorRT#4837)."""
    return {
        "layer_types": dict(Counter(layer.kind for layer in layers).most_common()),
        "fused_attention": sum(FUSED_ATTENTION in layer.name for layer in layers),
    }
