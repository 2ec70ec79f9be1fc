"""Arrays where an engine computes: NumPy's on the CPU, PyTorch's or CuPy's on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from ensemble.engines import runs_plans


class Arrays(NamedTuple):
    """`zeros(shape, name of a NumPy dtype)` makes an array; `working()` is the context in which such arrays and those
    that sub-models return are read and written, in the order of the sub-models' calls."""

    zeros: Callable[[tuple[int, ...], str], Any]
    working: Callable[[], AbstractContextManager[Any]] = nullcontext


HOST = Arrays(lambda shape, dtype: np.full(shape, 0, dtype))
"""Every byte is touched: a server that has started has the memory that it promises."""


def arrays_of(engine: str, device_id: int | None) -> Arrays:
    """Those of that engine on that GPU, or on the CPU for None."""
    if device_id is None:
        return HOST
    if runs_plans(engine):
        import cupy

        from ensemble.engines.plans.gpu import shared_gpu

        return Arrays(lambda shape, dtype: cupy.zeros(shape, dtype), shared_gpu(device_id).working)
    import torch

    device = torch.device("cuda", device_id)
    return Arrays(lambda shape, dtype: torch.zeros(shape, dtype=getattr(torch, dtype), device=device))


def copied(array: Any) -> Any:
    """A copy in the same place, which the next call of a sub-model leaves alone."""
    return array.clone() if hasattr(array, "clone") else array.copy()
