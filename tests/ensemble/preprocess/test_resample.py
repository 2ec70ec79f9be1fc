"""The resampler that the GPU repeats: its NumPy form against Pillow, its CUDA text, compiled for the CPU, against the
NumPy form."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ensemble.preprocess.resample import CUDA_SOURCE, resample, tables

SIZES = [  # width, height, resolution
    (1920, 1080, 1008),
    (1920, 1080, 560),
    (1280, 720, 672),
    (3840, 37, 840),
    (1008, 1008, 1008),
    (1009, 1007, 1008),
    (672, 500, 1008),
    (253, 251, 252),
    (1, 1, 28),
    (3, 2000, 140),
    (2, 7, 14),
    (8000, 3, 14),
]


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillows(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def columns_first(pixels, size):
    return resample(pixels.transpose(1, 0, 2), size).transpose(1, 0, 2)


@pytest.mark.parametrize(("width", "height", "size"), [case for case in SIZES if case[0] >= case[1]])
def test_equal_to_pillow_to_the_bit(width, height, size):
    pixels = noise(width, height)
    np.testing.assert_array_equal(resample(pixels, size), pillows(pixels, size))


def test_equal_to_pillow_at_sizes_nobody_chose():
    """Tall frames too, in the order of passes that this Pillow takes; in the other order they differ by 1 at most."""
    random = np.random.default_rng(7)
    for _ in range(100):
        width, height, size = random.integers(1, 400, 3).tolist()
        pixels = noise(width, height, size)
        theirs, ours = pillows(pixels, size), resample(pixels, size)
        assert (ours == theirs).all() or (columns_first(pixels, size) == theirs).all(), f"{width}x{height} to {size}"
        assert np.abs(ours.astype(int) - theirs).max() <= 1, f"{width}x{height} to {size}"


@pytest.mark.parametrize("value", [0, 255])
def test_black_stays_black_and_white_white(value):
    assert (resample(np.full((301, 517, 3), value, np.uint8), 140) == value).all()


@pytest.mark.parametrize(("size_in", "size_out"), [(1920, 1008), (1, 28), (32_768, 1008), (500, 1008)])
def test_spans_stay_inside_the_frame_and_weights_in_their_spans(size_in, size_out):
    spans, weights = tables(size_in, size_out)
    assert (spans[:, 0] >= 0).all()
    assert (spans.sum(axis=1) <= size_in).all()
    assert (spans[:, 1] >= 1).all()
    assert (spans[:, 1] <= weights.shape[1]).all()
    assert np.abs(weights.sum(axis=1, dtype=np.int64) - (1 << 22)).max() <= weights.shape[1]


HOST = """
struct { int x, y, z; } blockIdx, blockDim, gridDim, threadIdx;
#define __global__
#define __device__ static
"""
LAUNCH = """
extern "C" void run(const unsigned char* pixels, long long pitch, int height, int size,
                    const int* row_spans, const int* row_weights, int row_taps,
                    const int* column_spans, const int* column_weights, int column_taps,
                    unsigned char* planes, unsigned char* square) {
    blockDim.x = 32, gridDim.y = 5;
    for (blockIdx.y = 0; blockIdx.y < 5; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < (size + 31) / 32; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < 32; ++threadIdx.x)
                resample_rows(pixels, pitch, height, size, row_spans, row_weights, row_taps, planes);
    for (blockIdx.z = 0; blockIdx.z < 3; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < size; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < (size + 31) / 32; ++blockIdx.x)
                for (threadIdx.x = 0; threadIdx.x < 32; ++threadIdx.x)
                    resample_columns(planes, height, size, column_spans, column_weights, column_taps, square);
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The two kernels as a library of this machine: every thread of the grid in turn."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the kernels' text for the CPU")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "resample.cpp").write_text(HOST + CUDA_SOURCE + LAUNCH)
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", folder / "resample.so", folder / "resample.cpp"], check=True
    )
    return ctypes.CDLL(str(folder / "resample.so"))


@pytest.mark.parametrize(("width", "height", "size"), SIZES)
@pytest.mark.parametrize("padding", [0, 13], ids=["tight rows", "padded rows"])
def test_the_kernels_do_what_the_reference_does(kernels, width, height, size, padding):
    pixels = noise(width, height)
    padded = np.zeros((height, width * 3 + padding), np.uint8)
    padded[:, : width * 3] = pixels.reshape(height, -1)
    rows, columns = tables(width, size), tables(height, size)
    planes, square = np.zeros((3, height, size), np.uint8), np.zeros((3, size, size), np.uint8)
    address = lambda array: array.ctypes.data_as(ctypes.c_void_p)  # noqa: E731
    kernels.run(
        address(padded),
        ctypes.c_longlong(padded.strides[0]),
        height,
        size,
        *(address(rows[0]), address(rows[1]), rows[1].shape[1]),
        *(address(columns[0]), address(columns[1]), columns[1].shape[1]),
        address(planes),
        address(square),
    )
    np.testing.assert_array_equal(square.transpose(1, 2, 0), resample(pixels, size))
