"""What all plans of a process share on one GPU: the stream that they run on, and the memory that they compute in.

One call runs after the other, so the memory is that of the plan that needs most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cupy

from ensemble.engines.device import use_gpu


class SharedGpu:
    """One GPU. `name` and `compute_capability` ("8.9") are as CUDA tells them."""

    def __init__(self, device_id: int) -> None:
        use_gpu(device_id)
        self.device = cupy.cuda.Device(device_id)
        told = cupy.cuda.runtime.getDeviceProperties(device_id)
        self.name = told["name"].decode() if isinstance(told["name"], bytes) else str(told["name"])
        self.compute_capability = f"{told['major']}.{told['minor']}"
        with self.device:
            # TensorRT waits for the whole GPU at each call on the default stream.
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self._come = cupy.cuda.Event(disable_timing=True)
        self._turn = threading.RLock()
        self._scratch: Any = None
        self._size = 0
        self._users: list[Callable[[int, int], None]] = []

    @contextmanager
    def working(self) -> Iterator[Any]:
        """The stream, for one call at a time, which begins when what other code has launched so far has ended: on the
        default stream, as CuPy does where nobody says otherwise."""
        with self._turn, self.device, self.stream:
            self._come.record(cupy.cuda.Stream.null)
            self.stream.wait_event(self._come)
            yield self.stream

    def share(self, size: int, user: Callable[[int, int], None]) -> None:
        """Gives `user` address and bytes of the memory that all compute in, at least `size`; and again when another
        needs more. Raises MemoryError, saying how much, where there is no room."""
        with self.working() as stream:
            self._users.append(user)
            if size > self._size:
                stream.synchronize()
                self._scratch = None  # before the larger one is taken
                try:
                    self._scratch = cupy.cuda.alloc(size)
                except cupy.cuda.memory.OutOfMemoryError as error:
                    raise MemoryError(
                        f"expected {size / 2**20:,.0f} MB of free GPU memory for plans to compute in, there is less;"
                        " serve a lower resolution, or export with a lower --max-batch or --max-pairs"
                    ) from error
                self._size = size
                told = self._users
            else:
                told = [user]
            for each in told:
                each(self._scratch.ptr if self._scratch else 0, self._size)


@cache
def shared_gpu(device_id: int) -> SharedGpu:
    """The one of this process."""
    return SharedGpu(device_id)
