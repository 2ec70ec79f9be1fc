"""For the tests of TensorRT for RTX: Q/DQ pairs in front of a graph's products, and what a builder is told of a
graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

QUANTISED = {"int8": (TensorProto.INT8, 127.0), "fp8": (TensorProto.FLOAT8E4M3FN, 448.0)}
"""Element type and largest value of each."""


def quantised(path: Path, target: Path, precision: str) -> int:
    """Writes the graph at `path` with a QuantizeLinear and a DequantizeLinear in front of both factors of every product
    with fp16 weights. Returns how many pairs these are."""
    kind, largest = QUANTISED[precision]
    model = onnx.load(path)
    graph = model.graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.data_type == TensorProto.FLOAT16}
    nodes, pairs = [], 0
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            for i, name in enumerate(node.input):
                pairs += 1
                q, scale, zero = f"quantised_{pairs}", f"scale_{pairs}", f"zero_{pairs}"
                peak = np.abs(weights[name]).max() if name in weights else 8.0
                graph.initializer.append(numpy_helper.from_array(np.array(peak / largest, np.float16), scale))
                graph.initializer.append(helper.make_tensor(zero, kind, [], [0]))
                nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [q]))
                nodes.append(helper.make_node("DequantizeLinear", [q, scale, zero], [f"{q}_back"]))
                node.input[i] = f"{q}_back"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
    return pairs


class Told:
    """Stands between a caller and a package or one of its objects: everything goes through, and every call of a method
    and every attribute that is set is noted in `calls`."""

    def __init__(self, target: Any, calls: list[tuple[str, Any]]) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_calls", calls)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        enumeration = isinstance(value, type) and name not in ("Builder", "OnnxParser")
        return value if enumeration or not callable(value) else self._noted(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self._calls.append((f"{type(self._target).__name__}.{name}", value))
        setattr(self._target, name, value)

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            plain = [a._target if isinstance(a, Told) else a for a in arguments]
            self._calls.append((f"{type(self._target).__name__}.{name}", tuple(map(described, plain))))
            result = function(*plain)
            return Told(result, self._calls) if type(result).__module__.startswith("tensorrt") else result

        return call


def described(value: Any) -> Any:
    """Numbers, texts and members of enumerations as they are, objects by their class."""
    plain = isinstance(value, bool | int | float | str | tuple) or hasattr(value, "__members__")
    return value if plain else type(value).__name__
