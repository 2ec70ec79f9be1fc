"""INT8 of an ONNX file for processors: products with constant weights are computed in eight bits.

Weights are rounded once, each column with its own scale. Activations are rounded in every call with the scale of what
is there (`DynamicQuantizeLinear`), so nothing is cut off that no calibration frame has shown. Layers that this does not
suit stay in fp32: each product is rounded by itself on the calibration's inputs and compared with what it was.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Arrays = Mapping[str, np.ndarray]

ERROR_LIMIT = 0.05
"""Largest error of one product's result, |INT8 - fp32| / |fp32|. Rounding alone makes 0.005 to 0.03 of the small
checkpoint's; more comes from values that lie far apart, which one scale does not suit."""
OPERATORS = ("MatMul", "Gemm")
AT_A_TIME = 32
"""Products whose inputs are kept at a time: at 1008 each is a hundred megabytes a frame."""
WEIGHT_BITS = 7
"""Processors without VNNI add pairs of products in 16 bits, which eight-bit weights overflow."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies with constant weights [K,N], and the name of its input."""

    node: str
    input: str
    weights: np.ndarray


def quantise(path: Path, feeds: Sequence[Arrays], limit: float = ERROR_LIMIT) -> dict[str, Any]:
    """Replaces the ONNX file at `path` by one in INT8, and returns what a manifest says of it: how many products there
    are, which stay in fp32, and the largest error of one that does not. `feeds` are inputs of the whole file.

    Raises ValueError where no product is left to quantise.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    found = products(model)
    errors = product_errors(path, model, found, feeds)
    kept = sorted(name for name, error in errors.items() if not error <= limit)  # NaN stays in fp32
    chosen = [name for name in errors if name not in kept]
    if not chosen:
        raise ValueError(
            f"expected products with errors of at most {limit} in {path.name}, all {len(errors)} have more; this"
            " checkpoint does not suit INT8: use --precision fp32"
        )
    external = path.with_name(path.name + ".data").exists()
    del model.graph.value_info[:]  # shapes that ONNX's inference takes for contradictions of its own
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "out" / path.name
        target.parent.mkdir()
        onnx.save(model, source, save_as_external_data=external)
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it advises a pre-processing that breaks these graphs
        try:
            quantize_dynamic(
                source,
                target,
                nodes_to_quantize=chosen,
                per_channel=True,
                reduce_range=WEIGHT_BITS == 7,
                weight_type=QuantType.QInt8,
                use_external_data_format=external,
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logging.getLogger().setLevel(level)
        for old in (path, path.with_name(path.name + ".data")):
            old.unlink(missing_ok=True)
        for file in target.parent.iterdir():
            shutil.move(file, path.parent / file.name)
    largest = max(errors[name] for name in chosen)
    return {"products": len(errors), "in_fp32": kept, "largest_error": round(largest, 5), "limit": limit}


def products(model: onnx.ModelProto) -> list[Product]:
    """Those of a graph whose second factor is a constant matrix."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in OPERATORS and node.input[1] in constants and len(constants[node.input[1]].dims) == 2:
            weights = numpy_helper.to_array(constants[node.input[1]])
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            found.append(Product(node.name, node.input[0], weights.T if turned else weights))
    return found


def product_errors(
    path: Path, model: onnx.ModelProto, found: Sequence[Product], feeds: Sequence[Arrays]
) -> dict[str, float]:
    """Of each product by itself: the largest error over the feeds of its result in INT8."""
    errors = dict.fromkeys((product.node for product in found), 0.0)
    for chunk in (found[i : i + AT_A_TIME] for i in range(0, len(found), AT_A_TIME)):
        for inputs in inputs_of(path, model, sorted({p.input for p in chunk}), feeds):
            for product in chunk:
                error = rounding_error(inputs[product.input], product.weights)
                errors[product.node] = error if not error <= errors[product.node] else errors[product.node]
    return errors


def inputs_of(path: Path, model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Arrays]) -> Iterator[Arrays]:
    """The values of tensors inside a graph, for each feed."""
    import onnxruntime

    known = {output.name for output in model.graph.output} | {value.name for value in model.graph.input}
    telling = onnx.ModelProto()
    telling.CopyFrom(model)
    telling.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    given = {value.name for value in model.graph.input}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / path.name
        onnx.save(telling, file, save_as_external_data=path.with_name(path.name + ".data").exists())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        wanted = [name for name in names if name not in given]
        for feed in feeds:
            values = session.run(wanted, dict(feed)) if wanted else []
            yield {**feed, **dict(zip(wanted, values, strict=True))}


def rounding_error(x: np.ndarray, weights: np.ndarray) -> float:
    """|INT8 - fp32| / |fp32| of the product of x [..,K] with weights [K,N]: x in 256 steps between its least and its
    largest value and zero, each column of the weights in steps of its largest magnitude / 2^(WEIGHT_BITS - 1)."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    step = (high - low) / 255 or 1.0
    rounded = (np.clip(np.rint(rows / step) + np.rint(-low / step), 0, 255) - np.rint(-low / step)) * step
    scale = np.abs(weights).max(0) / (2 ** (WEIGHT_BITS - 1) - 1)
    scale[scale == 0] = 1.0
    wanted = rows @ weights
    return float(np.linalg.norm(rounded @ (np.rint(weights / scale) * scale) - wanted) / (np.linalg.norm(wanted) or 1))
