"""The first bytes of a plan of TensorRT for RTX, which say what wrote it and how long it is, on machines without a GPU.

The runtime says more (`get_engine_validity`), but it needs a GPU. The layout is not documented; it was found by
comparing plans of 1.7.1.116: the letters "vtrt", the length of the file at byte 16, the version's four numbers at byte
24, in 64 bytes. The runtime's own `engine_header_size` is 64, too. A test holds this to the installed package.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from export.engines.tensorrt.network import PlanError

LAYOUT = struct.Struct("<4s12xQ4B")
MAGIC = b"vtrt"
SIZE = 64


class Header(NamedTuple):
    """What a plan says of itself."""

    version: str
    """Of TensorRT for RTX, "1.7.1.116"."""
    length: int
    """Bytes of the whole file."""


def read_header(path: Path) -> Header:
    """Raises PlanError for a file that is no plan, or not a whole one."""
    with path.open("rb") as file:
        start = file.read(SIZE)
    again = "export it again with sam3-export --engine tensorrt_rtx --force"
    if len(start) < SIZE or not start.startswith(MAGIC):
        raise PlanError(f"{path}: expected a plan of TensorRT for RTX, got something else; {again}")
    _, length, *version = LAYOUT.unpack_from(start)
    found = path.stat().st_size
    if found != length:
        raise PlanError(f"{path}: expected a plan of {length} bytes, got {found}: it was not written whole; {again}")
    return Header(".".join(map(str, version)), length)


def check_plan(path: Path, installed: str) -> None:
    """Raises PlanError unless the plan is whole and of the version `installed`: TensorRT for RTX reads no other."""
    header = read_header(path)
    if header.version != installed:
        raise PlanError(
            f"{path}: expected a plan of TensorRT for RTX {installed}, which is installed here, got one of"
            f" {header.version}; export it again with sam3-export --engine tensorrt_rtx, or install"
            f" tensorrt-rtx-cu13-libs=={header.version} and tensorrt-rtx-cu13-bindings=={header.version}"
        )
