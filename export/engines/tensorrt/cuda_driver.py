"""The few functions of NVIDIA's driver that running a plan needs, through ctypes: device facts, memory, a stream and
events.

A machine has one driver, whose interface does not change, whatever CUDA runtime TensorRT brings; so this works in an
interpreter with nothing installed. Standard library only, Python 3.10. The runtime that TensorRT links uses the same
primary context.
"""

from __future__ import annotations

import ctypes
from typing import Any

COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class CudaError(RuntimeError):
    """The driver refused a call; the message names the call and the driver's reason."""


class Device:
    """GPU number `ordinal` of those that CUDA_VISIBLE_DEVICES leaves, its primary context made current. Raises
    CudaError where there is none."""

    def __init__(self, ordinal: int = 0) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(
                f"expected NVIDIA's driver (libcuda.so.1) on this machine: {error}; run on the GPU host"
            ) from error
        self.call("cuInit", 0)
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(self._device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls the driver's function `name`. Raises CudaError unless it succeeds."""
        status = getattr(self._library, name)(*arguments)
        if status:
            reason = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(reason))
            raise CudaError(f"{name} failed with {status}: {(reason.value or b'unknown').decode()}")

    @property
    def facts(self) -> dict[str, str]:
        """`gpu`, `compute_capability` ("9.0") and `cuda_driver` (the newest CUDA that the driver knows, "13.0")."""
        name, number = ctypes.create_string_buffer(256), ctypes.c_int()
        self.call("cuDeviceGetName", name, len(name), self._device)
        capability = []
        for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
            self.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, self._device)
            capability.append(str(number.value))
        self.call("cuDriverGetVersion", ctypes.byref(number))
        driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
        return {"gpu": name.value.decode(), "compute_capability": ".".join(capability), "cuda_driver": driver}

    def free_bytes(self) -> int:
        """Bytes of GPU memory that nobody uses."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")


class DeviceMemory:
    """`size` bytes of GPU memory; `address` is what kernels get. Freed by `free`."""

    def __init__(self, device: Device, size: int) -> None:
        self._device, self.size = device, size
        pointer = ctypes.c_uint64()
        device.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        self.address = int(pointer.value)

    def upload(self, data: bytearray) -> None:
        """Copies `size` bytes to the GPU."""
        source = (ctypes.c_char * self.size).from_buffer(data)
        self._device.call("cuMemcpyHtoD_v2", ctypes.c_uint64(self.address), source, ctypes.c_size_t(self.size))

    def download(self) -> bytearray:
        """Copies all bytes to the host."""
        data = bytearray(self.size)
        target = (ctypes.c_char * self.size).from_buffer(data)
        self._device.call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(self.address), ctypes.c_size_t(self.size))
        return data

    def free(self) -> None:
        self._device.call("cuMemFree_v2", ctypes.c_uint64(self.address))


class Stream:
    """A stream that does not wait for the default one; `handle` is a CUstream."""

    def __init__(self, device: Device) -> None:
        self._device, stream = device, ctypes.c_void_p()
        device.call("cuStreamCreate", ctypes.byref(stream), 1)  # CU_STREAM_NON_BLOCKING
        self.handle = int(stream.value or 0)

    def synchronize(self) -> None:
        self._device.call("cuStreamSynchronize", ctypes.c_void_p(self.handle))


class Event:
    """A mark in a stream."""

    def __init__(self, device: Device) -> None:
        self._device, self._event = device, ctypes.c_void_p()
        device.call("cuEventCreate", ctypes.byref(self._event), 0)

    def record(self, stream: Stream) -> None:
        self._device.call("cuEventRecord", self._event, ctypes.c_void_p(stream.handle))

    def milliseconds_since(self, earlier: Event) -> float:
        """Time on the GPU between two marks that the stream has passed."""
        elapsed = ctypes.c_float()
        self._device.call("cuEventElapsedTime", ctypes.byref(elapsed), earlier._event, self._event)
        return elapsed.value
