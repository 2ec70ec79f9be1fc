"""Arrays where an engine computes: NumPy's on the CPU, PyTorch's or CuPy's on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from ensemble.engines import runs_plans


class Arrays(NamedTuple):
    """`zeros(shape, name of a NumPy dtype)` makes an array; `working()` is the context in which such arrays and those
    that sub-models return are read and written, in the order of the sub-models' calls. `indices` makes of NumPy's
    integers what such arrays are indexed with, and `host` NumPy arrays of several of them, which it waits for."""

    zeros: Callable[[tuple[int, ...], str], Any]
    indices: Callable[[np.ndarray], Any]
    host: Callable[[Sequence[Any]], list[np.ndarray]]
    working: Callable[[], AbstractContextManager[Any]] = nullcontext


HOST = Arrays(lambda shape, dtype: np.full(shape, 0, dtype), lambda numbers: numbers, list)
"""Every byte is touched: a server that has started has the memory that it promises."""


def arrays_of(engine: str, device_id: int | None) -> Arrays:
    """Those of that engine on that GPU, or on the CPU for None."""
    if device_id is None:
        return HOST
    return _of_cupy(device_id) if runs_plans(engine) else _of_torch(device_id)


def _of_cupy(device_id: int) -> Arrays:
    import cupy

    from ensemble.engines.plans.gpu import shared_gpu

    working = shared_gpu(device_id).working

    def host(arrays: Sequence[Any]) -> list[np.ndarray]:
        with working():
            return [cupy.asnumpy(array) for array in arrays]

    return Arrays(lambda shape, dtype: cupy.zeros(shape, dtype), cupy.asarray, host, working)


def _of_torch(device_id: int) -> Arrays:
    import torch

    device = torch.device("cuda", device_id)

    def indices(numbers: np.ndarray) -> Any:
        # From pinned memory: from any other, the copy waits for all that the GPU has still to do.
        return torch.from_numpy(numbers).pin_memory().to(device, non_blocking=True)

    def host(arrays: Sequence[Any]) -> list[np.ndarray]:
        kept = [torch.empty(a.shape, dtype=a.dtype, pin_memory=True).copy_(a, non_blocking=True) for a in arrays]
        torch.cuda.current_stream(device).synchronize()
        return [array.numpy() for array in kept]

    return Arrays(lambda shape, dtype: torch.zeros(shape, dtype=getattr(torch, dtype), device=device), indices, host)


def copied(array: Any) -> Any:
    """A copy in the same place, which the next call of a sub-model leaves alone."""
    return array.clone() if hasattr(array, "clone") else array.copy()
