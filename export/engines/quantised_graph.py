"""Products of an ONNX graph in eight bits: QuantizeLinear and DequantizeLinear in front of both factors.

A strongly typed builder of TensorRT computes such a product in the type between the two; everything else of the graph
stays as it was. One scale a tensor: that of the weights from their largest entry, that of the other factor from a
calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

E4M3_LARGEST = 448.0
"""Of E4M3 (Micikevicius et al., FP8 formats for deep learning, 2022)."""
OPSET = 19
"""The first whose QuantizeLinear takes fp16 and gives E4M3; everything else that these graphs use means the same as in
18."""
SMALLEST_SCALE = 1e-6
"""Of tensors of zeros; fp16 has nothing much smaller."""


def quantise_products(path: Path, maxima: Sequence[float | None], name: str) -> None:
    """Rewrites the graph at `path`, of the sub-model `name`: `maxima` are the largest entries that the products with
    constant fp16 weights are given, in the graph's order; None leaves a product as it is.

    Raises ValueError where the graph has another number of such products.
    """
    model = onnx.load(str(path))
    graph = model.graph
    weights = {i.name: i for i in graph.initializer if i.data_type == TensorProto.FLOAT16}
    products = [n for n, node in enumerate(graph.node) if node.op_type == "MatMul" and node.input[1] in weights]
    if len(products) != len(maxima):
        raise ValueError(
            f"{name}: expected a graph of {len(maxima)} products with weights, got {len(products)}; the calibration is"
            " of another checkpoint, or the graph is written in another way"
        )
    wanted = {n: maximum for n, maximum in zip(products, maxima, strict=True) if maximum is not None}
    nodes: list[NodeProto] = []
    for n, node in enumerate(graph.node):
        if n in wanted:
            weight = numpy_helper.to_array(weights[node.input[1]])
            for i, largest in enumerate((wanted[n], float(np.abs(weight).max()))):
                pair, constants = _pair(node.input[i], f"{node.name or node.output[0]}/{i}", largest)
                graph.initializer.extend(constants)
                nodes.extend(pair)
                node.input[i] = pair[1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, OPSET)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def _pair(tensor: str, name: str, largest: float) -> tuple[list[NodeProto], list[TensorProto]]:
    """The two nodes behind `tensor`, and their scale and zero point."""
    scale, zero, eight, back = (f"{name}/{what}" for what in ("scale", "zero", "e4m3", "fp16"))
    size = np.array(max(largest / E4M3_LARGEST, SMALLEST_SCALE), np.float16)
    constants = [numpy_helper.from_array(size, scale), helper.make_tensor(zero, TensorProto.FLOAT8E4M3FN, [], [0.0])]
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [eight]),
        helper.make_node("DequantizeLinear", [eight, scale, zero], [back]),
    ]
    return nodes, constants
