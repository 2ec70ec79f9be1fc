"""Names of stages for Nsight Systems, as NVTX ranges; none unless an environment variable asks for them.

`SAM3_NVTX=1 nsys profile -t cuda,nvtx sam3-serve ...` shows the stages of every front model on its own line, above the
kernels of the sub-models.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

VARIABLE = "SAM3_NVTX"
Annotate = Callable[[str], AbstractContextManager[object]]
"""Marks what runs inside with a name."""


def unmarked(stage: str) -> AbstractContextManager[object]:
    """Marks nothing."""
    return nullcontext()


def from_environment() -> Annotate:
    """NVTX ranges where SAM3_NVTX is 1, nothing otherwise. Raises RuntimeError where they are asked for and the nvtx
    package is not installed."""
    if os.environ.get(VARIABLE, "0") != "1":
        return unmarked
    try:
        import nvtx
    except ImportError:
        raise RuntimeError(
            f"{VARIABLE}=1 needs the nvtx package in the front model's environment: pip install nvtx"
        ) from None
    return lambda stage: nvtx.annotate(stage, domain="sam3")
