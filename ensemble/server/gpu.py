"""The GPUs and the TensorRT of this machine, as NVML and TensorRT's own library describe them.

NVML comes with the driver, so this works where neither PyTorch nor CUDA's tools are installed, as in the serving
container. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ensemble.server.memory import MB

NVML = "libnvidia-ml.so.1"
TENSORRT = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8")
_NAME_BYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]  # nvmlMemory_t


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that CUDA may use here; `compute_capability` as in "9.0", memory in MB."""

    name: str
    compute_capability: str
    total_mb: float
    free_mb: float


def gpus() -> list[Gpu]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves visible; none where there is no driver."""
    with _nvml() as nvml:
        return [_describe(nvml, handle) for handle in _handles(nvml)] if nvml else []


def serving() -> Gpu | None:
    """The GPU on which a server of this process' environment places its models, the first that is visible; None where
    there is none."""
    return next(iter(gpus()), None)


def used_mb(number: int = 0) -> float:
    """Megabytes in use on the GPU of that number, by all processes; 0 where there is none."""
    found = gpus()
    return found[number].total_mb - found[number].free_mb if number < len(found) else 0.0


def driver_version() -> str | None:
    """Of NVIDIA's driver, as in "580.95.05"; None where there is none."""
    version = ctypes.create_string_buffer(_NAME_BYTES)
    with _nvml() as nvml:
        failed = nvml is None or nvml.nvmlSystemGetDriverVersion(version, _NAME_BYTES)
        return None if failed else version.value.decode(errors="replace")


def tensorrt_version() -> str | None:
    """Version of the TensorRT library that can be loaded here, None where there is none."""
    for name in TENSORRT:
        with contextlib.suppress(OSError):
            return decode_tensorrt(ctypes.CDLL(name).getInferLibVersion())
    return None


def decode_tensorrt(number: int) -> str:
    """`getInferLibVersion`'s number as major.minor.patch: 8.6.1 is 8601, 10.7.0 is 100700 (NV_TENSORRT_VERSION changed
    with 10)."""
    thousand, hundred = (10_000, 100) if number >= 10_000 else (1_000, 100)
    return f"{number // thousand}.{number % thousand // hundred}.{number % hundred}"


@contextlib.contextmanager
def _nvml() -> Iterator[ctypes.CDLL | None]:
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        yield None
        return
    if library.nvmlInit_v2():  # a driver that is not loaded, or no device
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _handles(nvml: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    for name in map(str, range(count.value)) if visible is None else filter(None, visible.split(",")):
        handle = ctypes.c_void_p()
        if name.strip().isdigit():
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
        else:  # GPU-... or MIG-...
            failed = nvml.nvmlDeviceGetHandleByUUID(name.strip().encode(), ctypes.byref(handle))
        if failed:
            return  # CUDA, too, stops at the first that it does not know
        yield handle


def _describe(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> Gpu:
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvml.nvmlDeviceGetName(handle, name, _NAME_BYTES)
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.total / MB, memory.free / MB)
