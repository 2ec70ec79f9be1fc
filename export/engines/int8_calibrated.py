"""INT8 of an ONNX graph for GPUs: Q/DQ pairs around products with constant weights, scales from a calibration.

Weights are symmetric, with a scale for each column; what comes in is symmetric too, with one scale, since TensorRT
takes no zero points and nothing else for it. How far that scale reaches is said by ONNX Runtime's calibration of what
the graph computes of given inputs. Layers whose result is off by more than a limit stay in fp16.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from export.calibration_options import METHODS
from export.engines.int8 import (
    ERROR_LIMIT,
    Arrays,
    Product,
    choice,
    product_errors,
    products,
    relative_error,
    rows_of,
    walked,
)
from export.engines.quantised_graph import INT8, insert_pairs

CODE = ("engines/int8.py", "engines/int8_calibrated.py", "engines/quantised_graph.py", "slim/int8_inputs.py")
"""What makes INT8 of an engine, see `Engine.code`."""
NOTE = "int8_inputs"
"""Attribute of a module that is to be built in INT8."""
PERCENTILE = 99.999
"""Of all values that a tensor had, by the method of that name."""
BINS, LEVELS = 2048, 128
"""Of the histograms, and of what entropy compares them with: INT8 has so many magnitudes."""


def in_int8(module: nn.Module, feeds: Sequence[Mapping[str, np.ndarray]], method: str) -> nn.Module:
    """The module itself, with a note of what its graph is calibrated by."""
    setattr(module, NOTE, (feeds, method))
    return module


def quantise_noted(module: nn.Module, path: Path) -> dict[str, Any]:
    """`quantise_calibrated` of a module's graph where `in_int8` has seen it; what a manifest says of that."""
    noted = getattr(module, NOTE, None)
    return {"int8": quantise_calibrated(path, *noted)} if noted else {}


def quantise_calibrated(
    path: Path, feeds: Sequence[Arrays], method: str = METHODS[0], limit: float = ERROR_LIMIT
) -> dict[str, Any]:
    """Puts the pairs into the graph at `path`, and returns what a manifest says of them: how many products there are,
    which stay in fp16, and the largest error of one that does not. `feeds` are inputs of the whole graph.

    Raises ValueError for an unknown method, and where no product is left to quantise.
    """
    model = onnx.load(path)
    found = products(model)
    largest = magnitudes(path, model, found, feeds, method)
    errors = product_errors(path, model, found, feeds, lambda product, x: static_error(product, x, largest))
    chosen, told = choice(errors, limit, path.name, "fp16")
    external = path.with_name(path.name + ".data").exists()
    insert_pairs(model, {p.output: largest[p.input] for p in found if p.node in chosen}, INT8)
    for old in (path, path.with_name(path.name + ".data")):
        old.unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=external, location=path.name + ".data")
    onnx.checker.check_model(str(path))
    return {**told, "calibration": method, "inputs": len(feeds)}


def magnitudes(
    path: Path, model: onnx.ModelProto, found: Sequence[Product], feeds: Sequence[Arrays], method: str
) -> dict[str, float]:
    """Of each product's input, by name, the magnitude that INT8's largest value stands for."""
    if method not in METHODS:
        raise ValueError(f"calibration must be one of {', '.join(METHODS)}, got {method!r}")
    seen = {product.input: product for product in found}.values()  # several products may read one tensor
    if method == "minmax":
        largest: dict[str, float] = {}
        for product, x in walked(path, model, list(seen), feeds):
            largest[product.input] = max(largest.get(product.input, 0.0), float(np.abs(x).max()))
        return largest
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, BINS, LEVELS, PERCENTILE, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        for product, x in walked(path, model, list(seen), feeds):
            collector.collect({product.input: x.astype(np.float32)})
        found_ranges = collector.compute_collection_result()
    return {name: max(abs(float(low)), abs(float(high))) for name, (low, high, *_) in found_ranges.items()}


def static_error(product: Product, x: np.ndarray, largest: dict[str, float]) -> float:
    """|INT8 - as it is| / |as it is| of a product's result, where its input is rounded in steps of its magnitude in
    `largest` / 127."""
    rows = rows_of(x)
    step = largest[product.input] / INT8.largest or 1.0
    rounded = np.clip(np.rint(rows / step), -128, 127) * step
    return relative_error(rows, product.weights, rounded, 8)
