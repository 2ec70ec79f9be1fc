"""Starting kernels so that `torch.export` can record them."""

from __future__ import annotations

from typing import Any

from torch.library import wrap_triton
from triton.runtime.jit import JITFunction


def traced(kernel: Any) -> Any:
    """`kernel` as `torch.export` can record it; one that Triton's interpreter runs (TRITON_INTERPRET=1) as it is."""
    return wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
