"""A sub-model and its ONNX graph in, both as TensorRT 8.6 reads them out: the one older branch of
`export/engines/tensorrt/plan.py`.

A network of that version has no types: fp16 is a flag, and where it is used is the builder's choice. Casts in the graph
only split what it would fuse, into regions for which it then has no fp16 kernels. So the encoders go over in fp32,
attention in one piece, with fp16 at their inputs and outputs alone. The decoder refines its boxes layer by layer and
the mask head sums over whole maps, which fp16 cannot hold: their graphs keep the casts, and a list says which of their
tensors must stay in fp32. Two more things that 8.6.0 cannot read: `start` and `end` of the operator Shape, in whose
place the whole shape is sliced; and, in the geometry encoder, dimensions that vary, so a dimension whose smallest and
largest size are the same becomes that number.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from ensemble.records import ModelSpec, TensorSpec

DTYPES = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}
CAST = ("decoder", "mask_head")
"""Parts whose graph says itself what is fp32."""


def untyped(module: nn.Module, model: ModelSpec) -> tuple[nn.Module, ModelSpec]:
    """The module and the record that the graph is made from: those of fp32, with attention in one piece, for all parts
    but those in `CAST`."""
    if model.part in CAST:
        return module, model
    for part in module.modules():
        if getattr(part, "form", None) == "chunked":
            part.form = "explicit"

    def wide(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="FP32") if t.dtype == "FP16" else t for t in tensors)

    return module.float(), replace(model, inputs=wide(model.inputs), outputs=wide(model.outputs))


def for_tensorrt_8(path: Path, model: ModelSpec) -> Path:
    """Rewrites the file at `path` in place (weights beside it stay where they are) and returns a JSON file: tensor name
    -> FP32 or FP16, for the tensors whose precision is prescribed."""
    graph_model = onnx.load(str(path), load_external_data=False)
    graph = graph_model.graph
    whole_shapes(graph)
    fix_sizes(graph, {a.name: a.maximum for t in model.inputs for a in t.axes.values() if a.minimum == a.maximum})
    onnx.save(graph_model, str(path))
    kinds = {v.name: DTYPES.get(v.type.tensor_type.elem_type, "") for v in (*graph.value_info, *graph.output)}
    produced = {
        name: kinds[name] for node in graph.node for name in node.output if name in kinds and model.part in CAST
    }
    told = path.with_suffix(".dtypes.json")
    told.write_text(json.dumps(produced))
    return told


def fix_sizes(graph: onnx.GraphProto, sizes: dict[str, int]) -> None:
    """Dimensions of these names become numbers."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]  # the name goes: it is one or the other


def whole_shapes(graph: onnx.GraphProto) -> None:
    """Shape(x, start, end) -> Slice(Shape(x), start, end)."""
    nodes = []
    for node in graph.node:
        bounds = {a.name: a.i for a in node.attribute} if node.op_type == "Shape" else {}
        nodes.append(node)
        if not bounds:
            continue
        (name,) = node.output
        whole, start, end = (f"{name}/{part}" for part in ("whole", "start", "end"))
        graph.initializer.append(numpy_helper.from_array(np.array([bounds.get("start", 0)]), start))
        graph.initializer.append(numpy_helper.from_array(np.array([bounds.get("end", 2**31 - 1)]), end))
        del node.attribute[:]
        node.output[0] = whole
        nodes.append(helper.make_node("Slice", [whole, start, end], [name]))
    del graph.node[:]
    graph.node.extend(nodes)
