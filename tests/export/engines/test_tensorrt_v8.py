"""What is done for TensorRT 8.6 alone: its graphs, and what its networks are told."""

from __future__ import annotations

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import torch

from ensemble.spec import Checkpoint, Variant
from export.engines.onnxruntime import onnx_session
from export.engines.tensorrt.engine import ENGINE
from export.engines.tensorrt.v8 import Version8, rewrite, untyped
from export.engines.tensorrt.version import version_of
from export.sub_models.parts import make_part


def test_the_version_is_found_by_its_number():
    assert isinstance(version_of("8.6.1"), Version8)
    assert not isinstance(version_of("10.13.3.9"), Version8)


def test_whole_shapes_are_sliced_and_the_answers_stay(exported, tmp_path):
    """TensorRT 8.6 ignores the bounds of Shape; ONNX Runtime answers the same without them."""
    export = exported(112)
    path = tmp_path / "model.onnx"
    shutil.copy(export.root / export.variant.decoder.name / "1" / "model.onnx", path)
    shapes = [node for node in onnx.load(path).graph.node if node.op_type == "Shape"]
    assert any(node.attribute for node in shapes)
    dtypes = rewrite(path, export.variant.decoder)
    after = [node for node in onnx.load(path).graph.node if node.op_type == "Shape"]
    assert len(after) == len(shapes)
    assert not any(node.attribute for node in after)
    assert dtypes["pred_boxes"] == "FP32"
    rng = np.random.default_rng(0)
    feed = {
        "fpn_2": rng.standard_normal((2, 64, 8, 8), np.float32),
        "image_index": np.array([1, 0, 1], np.int32),
        "prompt_features": rng.standard_normal((3, 33, 64), np.float32),
        "prompt_mask": np.ones((3, 33), np.int32),
    }
    wanted = export.runs["decoder"](feed)
    for name, found in onnx_session(path)(feed).items():
        np.testing.assert_allclose(found, wanted[name], atol=1e-5)


def test_the_decoders_graph_says_which_tensors_are_fp32(sized, tmp_path):
    variant = Variant(112, 20, "fp16", checkpoint=Checkpoint(hidden_size=64, num_queries=20))
    model, path = copy.deepcopy(sized(112)), tmp_path / "decoder.onnx"
    for layers in (model.detr_encoder.layers, model.detr_decoder.layers):
        del layers[1:]  # of the same operators, and each takes seconds to trace
    Version8().write_graph(make_part("decoder", model, ENGINE.style, "fp16"), variant.decoder, path)
    dtypes = json.loads((tmp_path / "decoder.dtypes.json").read_text())
    by_operator = {(n.op_type, dtypes[o]) for n in onnx.load(path).graph.node for o in n.output if dtypes.get(o)}
    assert {("LayerNormalization", "FP32"), ("Softmax", "FP32"), ("MatMul", "FP16")} <= by_operator
    assert ("LayerNormalization", "FP16") not in by_operator


def test_other_graphs_for_tensorrt_8_are_fp32_and_fixed_where_a_size_cannot_vary(sized, tmp_path):
    variant = Variant(112, 20, "fp16", max_batch=1, max_pairs=1, checkpoint=Checkpoint(hidden_size=64, num_queries=20))
    module = make_part("geometry_encoder", sized(112), ENGINE.style, "fp16")
    _, model = untyped(module, variant.geometry_encoder)
    assert {t.dtype for t in (*model.inputs, *model.outputs)} == {"FP32", "INT32"}
    path = tmp_path / "geometry.onnx"
    Version8().write_graph(module, variant.geometry_encoder, path)
    assert json.loads((tmp_path / "geometry.dtypes.json").read_text()) == {}
    graph = onnx.load(path).graph
    assert all(
        d.dim_value and not d.dim_param
        for value in (*graph.input, *graph.output)
        for d in value.type.tensor_type.shape.dim
    )
    feed = {
        "fpn_2": np.random.default_rng(0).standard_normal((1, 64, 8, 8), np.float32),
        "image_index": np.zeros(1, np.int32),
        "boxes": np.full((1, 8, 4), 0.5, np.float32),
        "box_labels": np.array([[1, 0, 1, -10, -10, -10, -10, -10]], np.int32),
    }
    exact = make_part("geometry_encoder", sized(112), ENGINE.style, "fp32")
    wanted = exact(*map(torch.from_numpy, feed.values())).detach().numpy()
    found = onnx_session(path)(feed)["geometry_features"]
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())  # weights are rounded to fp16


class FakeTensor(SimpleNamespace):
    """A tensor of a network: its name and dtype."""


def fake_network(layers):
    """A network of (type, name of the only output) with the inputs and outputs of the text encoder."""
    made = [
        SimpleNamespace(type=kind, num_outputs=1, get_output=lambda _, name=name: FakeTensor(name=name, dtype="fp32"))
        for kind, name in layers
    ]
    ends = [FakeTensor(name="input_ids", dtype="int32"), FakeTensor(name="text_features", dtype="fp32")]
    return SimpleNamespace(
        layers=made,
        ends=ends,
        num_layers=len(made),
        get_layer=lambda i: made[i],
        num_inputs=1,
        get_input=lambda _: ends[0],
        num_outputs=1,
        get_output=lambda _: ends[1],
    )


def test_layers_whose_result_is_prescribed_as_fp32_are_pinned(tmp_path):
    """A layer without a name in the graph follows the next one that has one; constants are left alone."""
    kinds = ("CONSTANT", "SHAPE", "CAST", "IDENTITY", "PLUGIN_V2")
    trt = SimpleNamespace(
        float16="fp16",
        float32="fp32",
        LayerType=SimpleNamespace(**{kind: kind for kind in kinds}),
        BuilderFlag=SimpleNamespace(FP16="fp16", OBEY_PRECISION_CONSTRAINTS="obey", TF32="tf32"),
        TacticSource=SimpleNamespace(JIT_CONVOLUTIONS=3, EDGE_MASK_CONVOLUTIONS=4),
    )
    flags, sources = [], []
    config = SimpleNamespace(set_flag=flags.append, set_tactic_sources=sources.append)
    network = fake_network([("SUM", "?"), ("SOFTMAX", "a"), ("CONSTANT", "?"), ("MATMUL", "b"), ("SUM", "?")])
    (tmp_path / "model.dtypes.json").write_text('{"a": "FP32", "b": "FP16"}')
    variant = Variant(112, 20, "fp16", checkpoint=Checkpoint(hidden_size=64, num_queries=20))
    Version8().configure(trt, network, config, variant.text_encoder, "fp16", tmp_path / "model.onnx")
    assert [hasattr(layer, "precision") for layer in network.layers] == [True, True, False, False, False]
    assert (flags, sources) == (["fp16", "obey"], [8 + 16])
    assert [tensor.dtype for tensor in network.ends] == ["int32", "fp16"]
