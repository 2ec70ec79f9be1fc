"""The adapter to Triton's Python API outside Triton: what it makes of arrays and tensors that lie here or there."""

import sys

import numpy as np
import pytest

from ensemble import triton_io
from tests.ensemble.fake_triton import GpuTensor, HostTensor


def test_values_on_the_host_are_read_where_they_are():
    values = np.arange(6.0).reshape(2, 3)
    assert triton_io.to_numpy(HostTensor("pred_logits", values), "sam3_decoder") is values


def test_output_on_the_gpu_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        triton_io.CallError,
        match=r"sam3_decoder: expected output 'pred_logits' in host memory, got it on the GPU.*install cupy-cuda13x",
    ):
        triton_io.to_numpy(GpuTensor("pred_logits", None), "sam3_decoder")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_output_on_the_gpu_comes_to_the_host(dtype):
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    got = triton_io.to_numpy(GpuTensor("pred_logits", cupy.asarray(values)), "sam3_decoder")
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, values)


def test_inputs_are_wrapped_where_they_lie():
    class OnGpu:
        """Not a NumPy array."""

    handle, array, batch = HostTensor("fpn_2", None), np.zeros(3), OnGpu()
    assert triton_io.to_triton("fpn_2", handle) is handle
    assert triton_io.to_triton("image_index", array).as_numpy() is array
    wrapped = triton_io.to_triton("pixel_values", batch)
    assert (wrapped.name(), wrapped.value, wrapped.is_cpu()) == ("pixel_values", batch, False)
