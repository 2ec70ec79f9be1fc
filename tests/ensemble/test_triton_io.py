"""The adapter to Triton's Python API outside Triton: what it makes of arrays and tensors that lie here or there."""

import importlib
import sys
import types

import numpy as np
import pytest


class HostTensor:
    """Triton's tensor with values on the host."""

    def __init__(self, name, value):
        self._name, self.value = name, value

    def name(self):
        return self._name

    def is_cpu(self):
        return True

    def as_numpy(self):
        return self.value

    @classmethod
    def from_dlpack(cls, name, value):
        return GpuTensor(name, value)


class GpuTensor(HostTensor):
    """Triton's tensor with values on a GPU, which it hands out through DLPack alone."""

    def is_cpu(self):
        return False

    def as_numpy(self):
        raise RuntimeError("Tensor is stored in GPU and cannot be converted to NumPy.")

    def to_dlpack(self):
        return self.value.__dlpack__()


@pytest.fixture
def triton_io(monkeypatch):
    """The module, with these tensors in the place of Triton's."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.Tensor = HostTensor
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.delitem(sys.modules, "ensemble.triton_io", raising=False)
    yield importlib.import_module("ensemble.triton_io")
    sys.modules.pop("ensemble.triton_io", None)


def test_values_on_the_host_are_read_where_they_are(triton_io):
    values = np.arange(6.0).reshape(2, 3)
    assert triton_io.to_numpy(HostTensor("pred_logits", values), "sam3_decoder") is values


def test_output_on_the_gpu_without_cupy_says_what_to_install(triton_io, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        triton_io.CallError,
        match=r"sam3_decoder: expected output 'pred_logits' in host memory, got it on the GPU.*install cupy-cuda13x",
    ):
        triton_io.to_numpy(GpuTensor("pred_logits", None), "sam3_decoder")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_output_on_the_gpu_comes_to_the_host(triton_io, dtype):
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    got = triton_io.to_numpy(GpuTensor("pred_logits", cupy.asarray(values)), "sam3_decoder")
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, values)


def test_inputs_are_wrapped_where_they_lie(triton_io):
    class OnGpu:
        """Not a NumPy array."""

    handle, array, batch = HostTensor("fpn_2", None), np.zeros(3), OnGpu()
    assert triton_io.to_triton("fpn_2", handle) is handle
    assert triton_io.to_triton("image_index", array).as_numpy() is array
    wrapped = triton_io.to_triton("pixel_values", batch)
    assert (wrapped.name(), wrapped.value, wrapped.is_cpu()) == ("pixel_values", batch, False)
