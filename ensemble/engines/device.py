"""The GPU of an engine process: which one its threads mean, and how much of its memory they take. PyTorch and CuPy are
asked where the process has them.
"""

from __future__ import annotations

import sys

from ensemble.server.memory import BESIDE_MB, LARGER_FRAMES_MB
from ensemble.spec import MB

PICTURES_MB = 256
"""The most that pictures and pixels take; with more, batches are read in halves."""
LEAST_MB = BESIDE_MB + LARGER_FRAMES_MB + 64
"""Room below which nothing can be computed."""


def use_gpu(device_id: int) -> None:
    """Makes that GPU the calling thread's own. What a library does without being told where, as joining arrays, handing
    one to another library or reading it, is done there then: a process that touches another's GPU has a context on it,
    and waits for its turn among that one's work."""
    if "torch" in sys.modules:
        import torch

        torch.cuda.set_device(device_id)
    if "cupy" in sys.modules:
        import cupy

        cupy.cuda.Device(device_id).use()


def release_memory() -> None:
    """Gives back the GPU memory that this process keeps for its next calls; for any thread."""
    if "torch" in sys.modules:
        from ensemble.engines import cuda_graphs

        cuda_graphs.release()
    if "cupy" in sys.modules:
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()


def limit_memory(device_id: int, more_mb: float) -> None:
    """From now on this process takes at most so many megabytes more of that GPU; a call that needs more raises an error
    that says so. Raises MemoryError where there is no room for any work."""
    if more_mb < LEAST_MB:
        raise MemoryError(
            f"expected room for at least {LEAST_MB:,.0f} MB of work beside the sub-models, got {more_mb:,.0f} MB; state"
            " more with --gpu-memory, or serve a lower resolution"
        )
    if "torch" in sys.modules:
        import torch

        total = torch.cuda.get_device_properties(device_id).total_memory
        limit = torch.cuda.memory_reserved(device_id) + (more_mb - BESIDE_MB - LARGER_FRAMES_MB) * MB
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device_id)
    if "cupy" in sys.modules:
        import cupy

        with cupy.cuda.Device(device_id):
            pool = cupy.get_default_memory_pool()
            if "ensemble.engines.plans.gpu" in sys.modules:  # features and masks, too, are CuPy's then
                pool.set_limit(size=int(pool.total_bytes() + (more_mb - BESIDE_MB - LARGER_FRAMES_MB) * MB))
            else:
                pool.set_limit(size=PICTURES_MB * MB)
