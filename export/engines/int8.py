"""INT8 of an ONNX file: products with constant weights are computed in eight bits, where that suits them.

For processors (`quantise`), weights are rounded once, each column with its own scale, and activations in every call
with the scale of what is there (`DynamicQuantizeLinear`), so nothing is cut off that no calibration frame has shown.
GPUs have scales from a calibration (`int8_calibrated.py`). In both, layers that this does not suit stay as they are:
each product is rounded by itself on given inputs and compared with what it was.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from export.engines.quantised_graph import turned

Arrays = Mapping[str, np.ndarray]

ERROR_LIMIT = 0.05
"""Largest error of one product's result, |INT8 - fp32| / |fp32|. Rounding alone makes 0.005 to 0.03 of the small
checkpoint's; more comes from values that lie far apart, which one scale does not suit."""
OPERATORS = ("MatMul", "Gemm")
AT_A_TIME = 32
"""Products whose inputs are kept at a time: at 1008 each is a hundred megabytes a frame."""
ROWS = 2048
"""Rows of a product's input that are enough to tell its error."""
WEIGHT_BITS = 7
"""Processors without VNNI add pairs of products in 16 bits, which eight-bit weights overflow."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies with constant weights [K,N], and the names of its input and its result."""

    node: str
    input: str
    weights: np.ndarray
    output: str


Error = Callable[[Product, np.ndarray], float]
"""(product, its input) -> |INT8 - as it is| / |as it is| of its result."""


def quantise(path: Path, feeds: Sequence[Arrays], limit: float = ERROR_LIMIT) -> dict[str, Any]:
    """Replaces the ONNX file at `path` by one in INT8, and returns what a manifest says of it: how many products there
    are, which stay in fp32, and the largest error of one that does not. `feeds` are inputs of the whole file.

    Raises ValueError where no product is left to quantise.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    found = products(model)
    errors = product_errors(path, model, found, feeds, lambda product, x: rounding_error(x, product.weights))
    chosen, told = choice(errors, limit, f"{path.name}", "fp32")
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
    return told


def choice(errors: Mapping[str, float], limit: float, name: str, other: str) -> tuple[list[str], dict[str, Any]]:
    """The products that are computed in INT8, and what a manifest says of the choice: those with a larger error than
    `limit` stay in the precision `other`. Raises ValueError where none is left."""
    kept = sorted(product for product, error in errors.items() if not error <= limit)  # NaN stays
    chosen = [product for product in errors if product not in kept]
    if not chosen:
        raise ValueError(
            f"expected products with errors of at most {limit} in {name}, all {len(errors)} have more; this"
            f" checkpoint does not suit INT8: use --precision {other}"
        )
    largest = round(max(errors[product] for product in chosen), 5)
    return chosen, {"products": len(errors), f"in_{other}": kept, "largest_error": largest, "limit": limit}


def products(model: onnx.ModelProto) -> list[Product]:
    """Those of a graph whose second factor is a constant matrix."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in OPERATORS and node.input[1] in constants and len(constants[node.input[1]].dims) == 2:
            weights = numpy_helper.to_array(constants[node.input[1]])
            columns = weights.T if turned(node) else weights
            found.append(Product(node.name, node.input[0], columns.astype(np.float32), node.output[0]))
    return found


def product_errors(
    path: Path, model: onnx.ModelProto, found: Sequence[Product], feeds: Sequence[Arrays], error: Error
) -> dict[str, float]:
    """Of each product by itself: the largest error over the feeds of its result in INT8."""
    errors = dict.fromkeys((product.node for product in found), 0.0)
    for product, x in walked(path, model, found, feeds):
        one = error(product, x)
        errors[product.node] = one if not one <= errors[product.node] else errors[product.node]
    return errors


def walked(
    path: Path, model: onnx.ModelProto, found: Sequence[Product], feeds: Sequence[Arrays]
) -> Iterator[tuple[Product, np.ndarray]]:
    """Every product with its input, for each feed."""
    for chunk in (found[i : i + AT_A_TIME] for i in range(0, len(found), AT_A_TIME)):
        for inputs in inputs_of(path, model, sorted({p.input for p in chunk}), feeds):
            for product in chunk:
                yield product, inputs[product.input]


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
    rows = rows_of(x)
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    step = (high - low) / 255 or 1.0
    rounded = (np.clip(np.rint(rows / step) + np.rint(-low / step), 0, 255) - np.rint(-low / step)) * step
    return relative_error(rows, weights, rounded, WEIGHT_BITS)


def rows_of(x: np.ndarray) -> np.ndarray:
    """At most `ROWS` rows of x [..,K], spread over all of them, in fp32."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[:: -(-len(rows) // ROWS)].astype(np.float32)


def relative_error(rows: np.ndarray, weights: np.ndarray, rounded: np.ndarray, bits: int) -> float:
    """Of the product of `rounded` with weights [K,N] of so many bits, a scale a column, beside that of `rows`."""
    scale = np.abs(weights).max(0) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1.0
    wanted = rows @ weights
    return float(np.linalg.norm(rounded @ (np.rint(weights / scale) * scale) - wanted) / (np.linalg.norm(wanted) or 1))
