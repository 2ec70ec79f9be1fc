"""A GPU and a plan for machines without: CuPy's calls that plans are run with, in host memory at true addresses, and a
plan of TensorRT for RTX that reads and writes at those addresses alone.

What a card does is not shown by it; that the runner gives a plan the right memory in the right order is.
"""

from __future__ import annotations

import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

ALIGNED = 256
MAX_IMAGES = 4
TENSORS = {"pixel_values": np.uint8, "fpn_2": np.float16, "pred_logits": np.float32}
"""The plan's, by name: one input, two outputs."""


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class Memory:
    """Bytes at an aligned address, which are overwritten when they are given back."""

    def __init__(self, size: int) -> None:
        self._bytes = np.zeros(size + ALIGNED, np.uint8)
        self.ptr = self._bytes.ctypes.data + -self._bytes.ctypes.data % ALIGNED
        self.size = size

    def __del__(self) -> None:
        self._bytes[:] = 0xAB


class Array:
    """What the runner needs of a CuPy array."""

    def __init__(self, array: np.ndarray, data: Any) -> None:
        self.host, self.data = array, data
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def set(self, array: np.ndarray, stream: Any) -> None:
        self.host[...] = array

    def copy(self) -> Array:
        made = empty(self.shape, self.dtype)
        made.host[...] = self.host
        return made

    def get(self) -> np.ndarray:
        return self.host.copy()

    def __setitem__(self, key: Any, value: Array) -> None:
        self.host[key] = value.host

    def __getitem__(self, key: slice) -> Array:
        part = self.host[key]
        return Array(part, SimpleNamespace(ptr=part.ctypes.data, owner=self.data))


def empty(shape: Any, dtype: Any) -> Array:
    memory = Memory(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return Array(at(memory.ptr, shape, dtype), memory)


def at(address: int, shape: Any, dtype: Any) -> np.ndarray:
    """The array that lies there."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)


class Context:
    """Of a device or a stream; events and streams keep the order by themselves, since all is done at once."""

    null: Any = None
    ptr = 77

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None: ...
    def use(self) -> None: ...
    def record(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...


def modules(free: list[int]) -> dict[str, Any]:
    """`cupy` and `cupyx` of a GPU that has `free[0]` bytes free for scratch memory."""

    def alloc(size: int) -> Memory:
        if size > free[0]:
            raise OutOfMemoryError(f"out of memory: {size}")
        return Memory(size)

    def memcpy(target: int, source: int, size: int, kind: int, stream: int) -> None:
        ctypes.memmove(target, source, size)

    runtime = SimpleNamespace(
        getDeviceProperties=lambda number: {"name": b"NVIDIA GeForce RTX 4090", "major": 8, "minor": 9},
        memGetInfo=lambda: (free[0], 24 << 30),
        memcpyAsync=memcpy,
        memcpyDeviceToHost=2,
    )
    cupy, cupyx = ModuleType("cupy"), ModuleType("cupyx")
    memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Context, Stream=Context, Event=Context, runtime=runtime, alloc=alloc, memory=memory
    )
    told = {"ndarray": Array, "empty": empty, "zeros": empty, "ascontiguousarray": lambda value: value}
    told["empty_like"] = lambda array: empty(array.shape, array.dtype)
    vars(cupy).update(told)
    cupyx.empty_pinned = np.empty  # type: ignore[attr-defined]
    return {"cupy": cupy, "cupyx": cupyx}


class Cache:
    """Kernels that a plan has finished: the sizes that it ran."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def serialize(self) -> bytes:
        return bytes(self.sizes)

    def deserialize(self, kept: bytes) -> bool:
        self.sizes = list(kept)
        return True


class Config:
    """Of a context; the adapter sets what TensorRT for RTX calls so."""

    def __init__(self) -> None:
        self.cache: Cache | None = None

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Plan:
    """From pixel_values uint8 [B,5] fpn_2 fp16 [B,5], which is twice that, and pred_logits fp32 [B,5], three times;
    both by way of its scratch memory, which must be there. `refuses` names a call that TensorRT refuses."""

    num_io_tensors = 3

    def __init__(self, trt: Any, scratch: int, refuses: str = "") -> None:
        self.trt, self.device_memory_size_v2, self.refuses = trt, scratch, refuses
        self.contexts: list[Runs] = []

    def get_tensor_name(self, index: int) -> str:
        return list(TENSORS)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name == "pixel_values" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        types = {np.uint8: "UINT8", np.float16: "HALF", np.float32: "FLOAT"}
        return getattr(self.trt.DataType, types[TENSORS[name]])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 5)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(1, 5), (2, 5), (MAX_IMAGES, 5)]

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, config: Config) -> Runs | None:
        if self.refuses == "create_execution_context":
            return None
        self.contexts.append(Runs(self, config))
        return self.contexts[-1]


class Runs:
    """An execution context of the plan. Like TensorRT's after the first, it has no profile until one is set."""

    def __init__(self, plan: Plan, config: Config) -> None:
        self._plan, self.config = plan, config
        self.active_optimization_profile = -1
        self.scratch: tuple[int, int] = (0, 0)
        self.addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = address, size

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active_optimization_profile = index
        return self._plan.refuses != "set_optimization_profile_async"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return self.active_optimization_profile == 0 and self._plan.refuses != "set_input_shape"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 5) if self._plan.refuses == "get_tensor_shape" else self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % ALIGNED == 0 and self._plan.refuses != "set_tensor_address"

    def execute_async_v3(self, stream: int) -> bool:
        address, size = self.scratch
        if self._plan.refuses == "execute_async_v3" or size < self._plan.device_memory_size_v2:
            return False
        if self.config.cache is not None:
            self.config.cache.sizes.append(self._shape[0])
        named = {name: at(self.addresses[name], self._shape, dtype) for name, dtype in TENSORS.items()}
        computed = at(address, self._shape, np.float32)
        for name, factor in zip(list(TENSORS)[1:], (2, 3), strict=True):
            computed[...] = named["pixel_values"].astype(np.float32) * factor
            named[name][...] = computed
        return True
