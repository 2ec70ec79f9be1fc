"""Products of an ONNX graph in eight bits: QuantizeLinear and DequantizeLinear in front of both factors.

A strongly typed builder of TensorRT computes such a product in the type between the two; everything else of the graph
stays as it was. The scale of the factor that comes in is one number, from a calibration; E4M3 has one scale for the
weights too, INT8 one for each of their columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True, slots=True)
class Eight:
    """A type of eight bits: its ONNX element type, its largest value, and whether each column of the weights has a
    scale of its own. Zero is zero: TensorRT takes no other."""

    element: int
    largest: float
    by_column: bool


E4M3 = Eight(TensorProto.FLOAT8E4M3FN, 448.0, by_column=False)
"""Micikevicius et al., FP8 formats for deep learning, 2022. A scale a tensor ports to consumer cards, others do not."""
INT8 = Eight(TensorProto.INT8, 127.0, by_column=True)
OPSET = 19
"""The first whose QuantizeLinear takes fp16 and gives E4M3; everything else that these graphs use means the same as in
18."""
SMALLEST_SCALE = 1e-6
"""Of tensors of zeros; fp16 has nothing much smaller."""


def quantise_products(path: Path, maxima: Sequence[float | None], name: str) -> None:
    """Rewrites the graph at `path`, of the sub-model `name`, in E4M3: `maxima` are the largest entries that the
    products with constant fp16 weights are given, in the graph's order; None leaves a product as it is.

    Raises ValueError where the graph has another number of such products.
    """
    model = onnx.load(str(path))
    weights = {i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT16}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if len(products) != len(maxima):
        raise ValueError(
            f"{name}: expected a graph of {len(maxima)} products with weights, got {len(products)}; the calibration is"
            " of another checkpoint, or the graph is written in another way"
        )
    pairs = zip(products, maxima, strict=True)
    insert_pairs(model, {node.output[0]: maximum for node, maximum in pairs if maximum is not None}, E4M3)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def insert_pairs(model: onnx.ModelProto, maxima: Mapping[str, float], eight: Eight) -> None:
    """Puts pairs of nodes in front of both factors of products with constant weights, which are named by their results:
    `maxima` are the largest magnitudes of what comes in. Scales have the type of the weights."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] in maxima:
            weights = numpy_helper.to_array(constants[node.input[1]])
            axis = (0 if turned(node) else 1) if eight.by_column else None
            largest = np.abs(weights).max() if axis is None else np.abs(weights).max(1 - axis)
            for i, (maximum, along) in enumerate(((np.float64(maxima[node.output[0]]), None), (largest, axis))):
                scale = np.maximum(maximum / eight.largest, SMALLEST_SCALE).astype(weights.dtype)
                pair, more = _pair(node.input[i], f"{node.name or node.output[0]}/{i}", scale, along, eight.element)
                graph.initializer.extend(more)
                nodes.extend(pair)
                node.input[i] = pair[1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, OPSET)


def turned(node: NodeProto) -> bool:
    """Whether a product takes its weights as [N,K]."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _pair(
    tensor: str, name: str, scales: np.ndarray, axis: int | None, element: int
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The two nodes behind `tensor`, and their scales and zero points: one, or one for each entry along `axis`."""
    scale, zero, eight, back = (f"{name}/{what}" for what in ("scale", "zero", "eight", "back"))
    zeros = helper.make_tensor(zero, element, scales.shape, [0] * scales.size)
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [eight], **along),
        helper.make_node("DequantizeLinear", [eight, scale, zero], [back], **along),
    ]
    return nodes, [numpy_helper.from_array(scales, scale), zeros]
