"""The head of a plan of TensorRT for RTX: whether the file is whole, and of which version it is, without a GPU.

The layout is not documented. In plans of 1.7.1.116: the letters "vtrt", at byte 16 the length of the file, at byte 24
the four numbers of the version; the runtime says that the head has 64 bytes. A test holds it to the installed package.
Standard library only.
"""

from __future__ import annotations

import struct
from pathlib import Path

HEAD = struct.Struct("<4s12xQ4B")
HEAD_BYTES = 64
LETTERS = b"vtrt"
AGAIN = "export it again with sam3-export --engine tensorrt_rtx --force"


class PlanFileError(ValueError):
    """The file is no plan that can be run here; the message says why and what to do."""


def version_of(path: Path) -> str:
    """The version that wrote the plan. Raises PlanFileError for a file that is no plan, is not a whole one, or cannot
    be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise PlanFileError(
            f"{path}: expected a plan of TensorRT for RTX, it cannot be read ({error.strerror}); make it readable for"
            f" this user, or {AGAIN}"
        ) from error
    if len(head) < HEAD_BYTES or not head.startswith(LETTERS):
        raise PlanFileError(f"{path}: expected a plan of TensorRT for RTX, got something else; {AGAIN}")
    _, length, *version = HEAD.unpack_from(head)
    if path.stat().st_size != length:
        raise PlanFileError(
            f"{path}: expected {length:,} bytes, got {path.stat().st_size:,}: it was not written whole; {AGAIN}"
        )
    return ".".join(map(str, version))


def check(path: Path, installed: str) -> None:
    """Raises PlanFileError unless the plan is whole and of the version that is installed."""
    version = version_of(path)
    if version != installed:
        raise PlanFileError(
            f"{path}: expected a plan of TensorRT for RTX {installed}, which is installed here, got one of {version};"
            f" {AGAIN}, or install tensorrt-rtx-cu13-libs=={version} and tensorrt-rtx-cu13-bindings=={version}"
        )
