"""TensorRT 8.6, the one older version that plans can be built with.

Its networks have no types: fp16 is a flag, and where it is used is the builder's choice. Casts in the graph only split
what it would fuse, into regions for which it then has no fp16 kernels. So the graphs of the encoders are fp32, with
attention in one piece, and fp16 at their inputs and outputs alone. The decoder refines its boxes layer by layer and the
mask head sums over whole maps, which fp16 cannot hold: their graphs keep the casts, and every layer whose result the
graph has in fp32 is pinned to it. Two more things that 8.6.0 cannot read: `start` and `end` of the operator Shape, in
whose place the whole shape is sliced; and, in the geometry encoder, dimensions that vary, so a dimension whose smallest
and largest size are the same becomes that number.

`write_graph` runs where PyTorch and ONNX are; everything else needs the standard library and Python 3.10 only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.records import ModelSpec, TensorSpec
from export.engines.tensorrt.version import Version

if TYPE_CHECKING:
    import onnx
    from torch import nn

log = logging.getLogger(__name__)

CAST = ("decoder", "mask_head")
"""Parts whose graph says itself what is fp32."""


class Version8(Version):
    """TensorRT 8.6."""

    timing_caches = False  # it writes timings that it cannot read: "Myelin error from unknown graph"

    def write_graph(self, module: nn.Module, model: ModelSpec, path: Path) -> None:
        """Beside the graph lies a JSON file: tensor name -> FP32 or FP16, where the precision is prescribed."""
        module, model = untyped(module, model)
        super().write_graph(module, model, path)
        _prescription(path).write_text(json.dumps(rewrite(path, model)))

    def create_network(self, trt: Any, builder: Any) -> Any:
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))

    def configure(self, trt: Any, network: Any, config: Any, model: ModelSpec, precision: str, onnx: Path) -> None:
        # Its cuBLAS and cuDNN tactics want versions of those libraries that current GPU hosts do not have; its own
        # kernels cover these graphs.
        own = int(trt.TacticSource.JIT_CONVOLUTIONS), int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS)
        config.set_tactic_sources(1 << own[0] | 1 << own[1])
        if precision == "fp32":
            super().configure(trt, network, config, model, precision, onnx)
            return
        set_dtypes(trt, network, model)
        pinned = pin_precisions(trt, network, config, json.loads(_prescription(onnx).read_text()))
        log.info("%s: %d layers are pinned to fp32", model.name, pinned)

    def activation_bytes(self, engine: Any) -> int:
        return int(engine.device_memory_size)


# ---- where PyTorch is: the graph
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


def rewrite(path: Path, model: ModelSpec) -> dict[str, str]:
    """Rewrites the file at `path` in place (weights beside it stay where they are). Returns tensor name -> FP32 or
    FP16 for the tensors whose precision is prescribed."""
    import onnx

    graph_model = onnx.load(str(path), load_external_data=False)
    graph = graph_model.graph
    whole_shapes(graph)
    fix_sizes(graph, {a.name: a.maximum for t in model.inputs for a in t.axes.values() if a.minimum == a.maximum})
    onnx.save(graph_model, str(path))
    names = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}
    kinds = {v.name: names.get(v.type.tensor_type.elem_type, "") for v in (*graph.value_info, *graph.output)}
    return {name: kinds[name] for node in graph.node for name in node.output if name in kinds and model.part in CAST}


def fix_sizes(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    """Dimensions of these names become numbers."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]  # the name goes: it is one or the other


def whole_shapes(graph: onnx.GraphProto) -> None:
    """Shape(x, start, end) -> Slice(Shape(x), start, end)."""
    import numpy as np
    from onnx import helper, numpy_helper

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


def _prescription(onnx: Path) -> Path:
    return onnx.with_suffix(".dtypes.json")


# ---- where TensorRT is: the network
def set_dtypes(trt: Any, network: Any, model: ModelSpec) -> None:
    """Inputs and outputs of the record's dtypes, whatever the graph calls them."""
    wanted = {t.name: t.dtype for t in (*model.inputs, *model.outputs)}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in inputs + outputs:
        if wanted.get(tensor.name) == "FP16":
            tensor.dtype = trt.float16


def pin_precisions(trt: Any, network: Any, config: Any, dtypes: Mapping[str, str]) -> int:
    """Allows fp16, but pins layers whose result `dtypes` calls FP32 to fp32. Returns how many those are.

    `dtypes` is what `rewrite` returned; the network itself calls all tensors fp32. One operator may become several
    layers, of which only the last gives a tensor that the graph names: those before it follow it. The other layers are
    left to the builder.
    """
    config.set_flag(trt.BuilderFlag.FP16)
    if not dtypes:
        return 0
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    kinds = trt.LayerType
    # A plugin decides itself what it can compute in.
    untouched = (kinds.CONSTANT, kinds.SHAPE, kinds.CAST, kinds.IDENTITY, kinds.PLUGIN_V2)
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
