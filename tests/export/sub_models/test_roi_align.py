"""RoIAlign as products beside torchvision's operator, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn

from ensemble.records import Axis, ModelSpec, TensorSpec
from export.engines.onnx import export_onnx
from export.engines.onnxruntime import onnx_session
from export.sub_models.roi_align import roi_align

SIDES = (8, 9, 18, 49, 70, 72)
"""Patches a side: what the small checkpoints have, whole multiples of the seven cells, and 1008's."""


def boxes(side: int) -> dict[str, tuple[float, float, float, float]]:
    """Corners in pixels of a map of this side, by what is special about them."""
    s = float(side)
    return {
        "inside": (1.3, 2.1, 5.9, 6.4),
        "one pixel": (3.0, 4.0, 4.0, 5.0),
        "whole map": (0.0, 0.0, s, s),
        "whole map, rounded up": (0.0, 0.0, s * (1 + 1e-6), s * (1 + 1e-6)),
        "seven pixels: one sample a cell": (0.5, 0.5, 7.5, 7.5),
        "a little more: two samples": (0.5, 0.5, 7.5001, 7.5001),
        "left and top edge": (-0.7, -0.4, 3.2, 2.0),
        "right and bottom edge": (s - 2.5, s - 3.1, s + 0.9, s + 1.4),
        "over all edges": (-s / 3, -s / 4, s * 1.3, s * 1.4),
        "outside": (-6.0, -5.0, -2.0, -1.5),
        "beyond the far corner": (s + 2.0, s + 2.0, s + 5.0, s + 4.0),
        "thin": (2.0, 0.0, 2.2, s),
        "no area": (3.0, 3.0, 3.0, 3.0),
        "turned round": (6.0, 5.0, 2.0, 1.0),
        "padding": (0.0, 0.0, 0.0, 0.0),
        "last pixel": (s - 1.0, s - 1.0, s, s),
    }


def case(side: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Map [3,p,p,C], index [2], corners [2,K,4], and what torchvision makes of them [2,K,7,7,C]: every special box on
    one image, as many that are drawn by chance on another."""
    rng = np.random.default_rng(side)
    special = np.array(list(boxes(side).values()))
    drawn = np.sort(rng.uniform(-0.1, 1.1, (len(special), 2, 2)) * side, 1).reshape(-1, 4)
    corners = torch.from_numpy(np.stack([special, drawn])).to(dtype)
    image = torch.from_numpy(rng.standard_normal((3, side, side, 32))).to(dtype)
    index = torch.tensor([2, 0], dtype=torch.int32)
    rows = torch.cat([index.to(dtype)[:, None, None].expand(-1, len(special), 1), corners], -1).flatten(0, 1)
    wanted = torchvision.ops.roi_align(image.permute(0, 3, 1, 2).contiguous(), rows, 7)
    return image, index, corners, wanted.permute(0, 2, 3, 1).unflatten(0, (2, -1))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=["fp64", "fp32"])
def test_products_equal_torchvisions_samples(side: int, dtype: torch.dtype, limit: float) -> None:
    *inputs, wanted = case(side, dtype)
    off = (roi_align(*inputs, cells=7) - wanted).abs().amax((0, 2, 3, 4))
    assert wanted.abs().max() > 1
    assert {name: float(o) for name, o in zip(boxes(side), off, strict=True) if not o <= limit} == {}


class Pooling(nn.Module):
    def forward(self, image: torch.Tensor, image_index: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
        return roi_align(image, image_index, corners, 7)


def test_the_graph_has_plain_operators_and_gives_the_same(tmp_path) -> None:
    side = 9
    *inputs, wanted = case(side, torch.float32)
    images, pairs, count = Axis("images", 1, 2, 8), Axis("pairs", 1, 2, 8), len(boxes(side))
    record = ModelSpec(
        *("pooling", "pooling"),
        inputs=(
            TensorSpec("image", "FP32", (images, side, side, 32)),
            TensorSpec("image_index", "INT32", (pairs,)),
            TensorSpec("corners", "FP32", (pairs, count, 4)),
        ),
        outputs=(TensorSpec("pooled", "FP32", (pairs, count, 7, 7, 32)),),
    )
    path = export_onnx(Pooling(), record, tmp_path / "pooling.onnx")
    graph = onnx.load(path)
    assert {node.op_type for node in graph.graph.node} & {"RoiAlign", "If", "Loop", "NonZero"} == set()
    assert {entry.domain for entry in graph.opset_import} == {""}
    names = [tensor.name for tensor in record.inputs]
    found = onnx_session(path, 1)(dict(zip(names, (t.numpy() for t in inputs), strict=True)))["pooled"]
    assert np.abs(found - wanted.numpy()).max() <= 1e-6


def test_the_geometry_encoders_graph_has_no_operator_of_torchvisions(exported) -> None:
    path = exported(112).root / exported(112).variant.geometry_encoder.name / "1" / "model.onnx"
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "RoiAlign" not in operators
    assert {"MatMul", "Gather"} <= operators
