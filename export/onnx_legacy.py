"""An ONNX graph in, the same graph as TensorRT 8.6 reads it out, with a list of its tensors' dtypes.

That version ignores `start` and `end` of the operator Shape, so a slice of the whole shape takes their place. And it forgets the graph's dtypes: that a
layer computes in fp32 has to be told it by name. So it reads all five sub-models; 8.6.0 then fails to build the geometry encoder, inside its own fusion.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

DTYPES = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}


def for_tensorrt_8(path: Path) -> Path:
    """Rewrites the file at `path` in place (weights beside it stay where they are) and returns a JSON file: tensor name -> FP32, FP16 or nothing."""
    model = onnx.load(str(path), load_external_data=False)
    whole_shapes(model.graph)
    onnx.save(model, str(path))
    kinds = {v.name: DTYPES.get(v.type.tensor_type.elem_type, "") for v in (*model.graph.value_info, *model.graph.output)}
    produced = {name: kinds[name] for node in model.graph.node for name in node.output if name in kinds}
    told = path.with_suffix(".dtypes.json")
    told.write_text(json.dumps(produced))
    return told


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
