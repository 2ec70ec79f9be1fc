"""How a kernel is started: traced into an exported graph on a GPU, or run by Triton's interpreter (TRITON_INTERPRET=1)
where there is none."""

from __future__ import annotations

from typing import Any

from torch.library import wrap_triton
from triton.runtime.jit import JITFunction


def traced(kernel: Any) -> Any:
    """`kernel` in the form that `torch.export` can record; an interpreted kernel stays as it is."""
    return wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
