"""Pillow's 8-bit bilinear resampler, spelled out so that a GPU can repeat it to the bit.

`Image.resize` works in two passes, rows and then columns, each rounding to uint8; a weight is an integer of 22
fractional bits. `resample` does that in NumPy and is what the tests hold to Pillow; `CUDA_SOURCE` is the same loops for
`ensemble/preprocess/gpu.py`.
"""

from __future__ import annotations

import math

import numpy as np

FRACTION_BITS = 22
"""8 bits of the pixel and 2 of headroom for negative filters leave this many of an int32; Pillow's `PRECISION_BITS`."""


def tables(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """One pass from `size_in` to `size_out` pixels: `spans` int32 [size_out,2] (first pixel, count) and `weights` int32
    [size_out,taps].

    The filter is a triangle of half-width 1 input pixel, or 1 output pixel where that is wider (antialiasing). Weights
    beyond a span's count are 0.
    """
    scale = size_in / size_out
    support = max(scale, 1.0)
    centers = (np.arange(size_out) + 0.5) * scale
    first = np.maximum(np.trunc(centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum(np.trunc(centers + support + 0.5).astype(np.int64), size_in) - first
    taps = np.arange(2 * math.ceil(support) + 1)
    distance = np.abs((taps + first[:, None] - centers[:, None] + 0.5) * (1.0 / support))
    weights = np.where(taps < count[:, None], np.maximum(1.0 - distance, 0.0), 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # adds in order, as Pillow does; sum() adds in pairs and rounds apart
    fixed = np.trunc(0.5 + weights * (1 << FRACTION_BITS)).astype(np.int32)
    return np.stack([first, count], axis=1).astype(np.int32), fixed


def resample(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H,W,C] stretched to [size,size,C], equal to Pillow's `resize((size, size), BILINEAR)`.

    Pillow 13 does the columns first where that shrinks a frame faster; each pass rounds, so such frames may differ by 1
    grey level here and there.
    """
    rows = _resample_rows(pixels, size)
    return _resample_rows(rows.transpose(1, 0, 2), size).transpose(1, 0, 2)


def _resample_rows(pixels: np.ndarray, size: int) -> np.ndarray:
    width = pixels.shape[1]
    spans, weights = tables(width, size)
    total = np.full((pixels.shape[0], size, pixels.shape[2]), 1 << (FRACTION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        total += pixels[:, np.minimum(spans[:, 0] + tap, width - 1)] * weights[:, tap, None]
    return np.clip(total >> FRACTION_BITS, 0, 255).astype(np.uint8)


CUDA_SOURCE = r"""
#define FRACTION_BITS 22

__device__ unsigned char to_pixel(int total) {
    total >>= FRACTION_BITS;
    return total < 0 ? 0 : total > 255 ? 255 : total;
}

// Rows: pixels [height, width, 3], `pitch` bytes from row to row, to planes [3, height, size].
extern "C" __global__ void resample_rows(const unsigned char* pixels, long long pitch, int height, int size,
                                         const int* spans, const int* weights, int taps, unsigned char* planes) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= size) return;
    int first = spans[2 * column], count = spans[2 * column + 1];
    const int* weight = weights + (long long)column * taps;
    long long plane = (long long)height * size;
    for (int row = blockIdx.y; row < height; row += gridDim.y) {
        const unsigned char* pixel = pixels + row * pitch + 3LL * first;
        int red = 1 << (FRACTION_BITS - 1), green = red, blue = red;
        for (int tap = 0; tap < count; ++tap, pixel += 3) {
            red += pixel[0] * weight[tap];
            green += pixel[1] * weight[tap];
            blue += pixel[2] * weight[tap];
        }
        unsigned char* target = planes + (long long)row * size + column;
        target[0] = to_pixel(red);
        target[plane] = to_pixel(green);
        target[2 * plane] = to_pixel(blue);
    }
}

// Columns: planes [3, height, size] to square [3, size, size]; blockIdx.y is the row, blockIdx.z the plane.
extern "C" __global__ void resample_columns(const unsigned char* planes, int height, int size,
                                            const int* spans, const int* weights, int taps, unsigned char* square) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (column >= size) return;
    int first = spans[2 * row], count = spans[2 * row + 1];
    const int* weight = weights + (long long)row * taps;
    const unsigned char* pixel = planes + ((long long)blockIdx.z * height + first) * size + column;
    int total = 1 << (FRACTION_BITS - 1);
    for (int tap = 0; tap < count; ++tap, pixel += size) total += *pixel * weight[tap];
    square[((long long)blockIdx.z * size + row) * size + column] = to_pixel(total);
}
"""
