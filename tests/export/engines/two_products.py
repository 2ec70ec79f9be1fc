"""A graph of two products of one input, for tests of INT8, and inputs of which one value may lie far apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

WIDTH = 32


def weights_of(dtype: type) -> dict[str, np.ndarray]:
    """`even` and `odd` [WIDTH,WIDTH]; `even` does not read the input's first value."""
    rng = np.random.default_rng(0)
    found = {name: rng.normal(0, 0.2, (WIDTH, WIDTH)).astype(dtype) for name in ("even", "odd")}
    found["even"][0] = 0.0
    return found


def file_of(path: Path, nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]) -> Path:
    """x [n,WIDTH] -> y_even and y_odd, which `nodes` make of it with `constants`."""
    dtype = helper.np_dtype_to_tensor_dtype(constants["even"].dtype)
    x, *made = (helper.make_tensor_value_info(name, dtype, ["n", WIDTH]) for name in ("x", "y_even", "y_odd"))
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "two", [x], made, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def x_of(first: float, dtype: type) -> np.ndarray:
    """Inputs [64,WIDTH] whose first values are all `first`."""
    x = np.random.default_rng(1).normal(0, 1, (64, WIDTH)).astype(dtype)
    x[:, 0] = first
    return x
