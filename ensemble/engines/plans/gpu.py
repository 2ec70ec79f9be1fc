"""What all plans of a process share on one GPU: the stream that they run on, and the memory that they compute in.

One call runs after the other, so the memory is that of the plan that needs most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakMethod

import cupy

from ensemble.engines.device import use_gpu
from ensemble.spec import MB


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
        self._users: list[WeakMethod[Callable[[int, int], None]]] = []

    @contextmanager
    def working(self) -> Iterator[Any]:
        """The stream, for one call at a time, which begins when what other code has launched so far has ended: on the
        default stream, as CuPy does where nobody says otherwise."""
        with self._turn, self.device, self.stream:
            self._come.record(cupy.cuda.Stream.null)
            self.stream.wait_event(self._come)
            yield self.stream

    @property
    def free_mb(self) -> float:
        """Megabytes that no process has taken; what CuPy keeps for its next calls counts as taken."""
        with self.device:
            return cupy.cuda.runtime.memGetInfo()[0] / MB

    def share(self, size: int, user: Callable[[int, int], None]) -> None:
        """Gives the method `user` address and bytes of the memory that all compute in, at least `size`; and again when
        another needs more, as long as its object is in use. Raises MemoryError, saying how much, where there is no
        room; the others then go on in what they had."""
        with self.working() as stream:
            if size > self._size:
                stream.synchronize()
                before, self._scratch = self._size, None  # given back before the larger one is taken
                try:
                    self._take(size)
                except cupy.cuda.memory.OutOfMemoryError as error:
                    free = self.free_mb
                    self._take(before)
                    raise MemoryError(
                        f"expected {size / MB:,.0f} MB of GPU memory for plans to compute in, there are {free:,.0f} MB"
                        " free; free some, serve a lower resolution, or export with a lower --max-batch or --max-pairs"
                    ) from error
            user(self._address, self._size)
            self._users.append(WeakMethod(user))

    @property
    def _address(self) -> int:
        return self._scratch.ptr if self._scratch else 0

    def _take(self, size: int) -> None:
        """Memory of that size for all users that there are."""
        self._size = 0
        self._scratch = cupy.cuda.alloc(size) if size else None
        self._size = size
        self._users = [user for user in self._users if user() is not None]
        for user in self._users:
            if (told := user()) is not None:
                told(self._address, self._size)


@cache
def shared_gpu(device_id: int) -> SharedGpu:
    """The one of this process."""
    return SharedGpu(device_id)
