"""Messages between the process that has PyTorch and the one that has TensorRT: a line of JSON, then the bytes of each
tensor that the line announces.

Both ends use these functions, over the pipes of the child's standard input and output. Tensors are raw, little-endian
and contiguous, so neither NumPy nor PyTorch is needed. Standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

ITEM_BYTES = {"UINT8": 1, "INT32": 4, "FP32": 4, "FP16": 2}
"""Bytes of one element, by the dtype's name in `ensemble/spec.py`."""


class WireError(RuntimeError):
    """The other end is gone, or sent something that is not a message."""


class Array(NamedTuple):
    """A tensor as bytes: `dtype` is the specification's name."""

    dtype: str
    shape: tuple[int, ...]
    data: bytearray


def byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a contiguous tensor."""
    return math.prod(shape) * ITEM_BYTES[dtype]


def send(stream: BinaryIO, header: Mapping[str, Any], tensors: Mapping[str, Array] | None = None) -> None:
    """Writes one message; `header` is plain data. Raises WireError when the other end is gone."""
    listed = [{"name": name, "dtype": a.dtype, "shape": list(a.shape)} for name, a in (tensors or {}).items()]
    try:
        stream.write(json.dumps({**header, "tensors": listed}).encode() + b"\n")
        for array in (tensors or {}).values():
            stream.write(array.data)
        stream.flush()
    except (BrokenPipeError, ValueError) as error:
        raise WireError("expected a process that listens, it has ended") from error


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """One message, or None where the other end closed the pipe between two. Raises WireError on anything that is
    neither."""
    line = stream.readline()
    if not line:
        return None
    try:
        header = json.loads(line)
        listed = [(t["name"], t["dtype"], tuple(t["shape"])) for t in header.pop("tensors")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError(f"expected a line of JSON that lists its tensors, got {line[:80]!r}") from error
    tensors = {}
    for name, dtype, shape in listed:
        data = bytearray(byte_count(dtype, shape))
        read = _fill(stream, data)
        if read < len(data):
            raise WireError(f"expected {len(data)} bytes of {name}, the other end stopped after {read}")
        tensors[name] = Array(dtype, shape, data)
    return header, tensors


def _fill(stream: BinaryIO, data: bytearray) -> int:
    """Reads until `data` is full or the stream ends; how many bytes came."""
    view, filled = memoryview(data), 0
    while filled < len(data):
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            break
        filled += count
    return filled
