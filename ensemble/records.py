"""The records that describe a model to Triton and to its callers: tensors, the axes along which they vary, models.

`ensemble/spec.py` fills them in for SAM3. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NUMPY_DTYPES = {"FP32": "float32", "FP16": "float16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8"}
"""NumPy's name of each of Triton's dtypes that a tensor of this project has; BYTES has none."""
ITEM_BYTES = {"FP32": 4, "FP16": 2, "INT32": 4, "INT64": 8, "UINT8": 1}
"""Bytes of one number of each."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension that varies from call to call: its name, and the smallest, usual and largest size."""

    name: str
    minimum: int
    optimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `dtype` is Triton's name. `host` says that the front model reads the values; the rest stay
    where they were made."""

    name: str
    dtype: str
    dims: tuple[int | Axis, ...]
    host: bool = True
    optional: bool = False

    def shape(self, **sizes: int) -> tuple[int, ...]:
        """The shape with each axis at `sizes[axis.name]`, or at its optimum where none is given."""
        return tuple(sizes.get(d.name, d.optimum) if isinstance(d, Axis) else d for d in self.dims)

    @property
    def axes(self) -> dict[int, Axis]:
        """Position -> axis, for the dimensions that vary."""
        return {i: d for i, d in enumerate(self.dims) if isinstance(d, Axis)}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One Triton model: name, part of SAM3 it is (`front` for the front model), inputs and outputs."""

    name: str
    part: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ragged: bool = False  # requests of different shapes share a batch (front model only)
    front_batch: int = 0

    @property
    def batch_axis(self) -> Axis | None:
        """The axis that leads every tensor, if there is one: then it is Triton's batch dimension."""
        leading = {t.dims[0] if t.dims else None for t in (*self.inputs, *self.outputs)}
        first, *rest = leading
        return first if not rest and isinstance(first, Axis) else None

    @property
    def max_batch_size(self) -> int:
        """Triton's `max_batch_size`; 0 where images and pairs are separate axes."""
        axis = self.batch_axis
        return self.front_batch or (axis.maximum if axis else 0)

    @property
    def largest_bytes(self) -> int:
        """Of all inputs and outputs of the largest call."""
        return sum(
            ITEM_BYTES[tensor.dtype] * math.prod(d.maximum if isinstance(d, Axis) else d for d in tensor.dims)
            for tensor in (*self.inputs, *self.outputs)
        )

    def input(self, name: str) -> TensorSpec:
        return _named(self.inputs, name, self.name)

    def output(self, name: str) -> TensorSpec:
        return _named(self.outputs, name, self.name)


def _named(tensors: tuple[TensorSpec, ...], name: str, model: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise KeyError(f"{model} has no tensor {name!r}; it has {', '.join(t.name for t in tensors)}")
