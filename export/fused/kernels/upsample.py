"""One stage of the mask head up to its group normalisation: the convolved sum of an upsampled map and a skip map, and
the statistics for normalising it.

A 3x3 convolution of a map repeated 2x is, for each of the four kinds of output pixel, a 2x2 convolution of the small
map: four matrix products of 4/9 of the work. The skip map has been convolved once per image before; here it is added
while the result is still on the chip, where the sums for the group normalisation are taken as well. So the large map is
written once, and read once by what normalises it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.launch import traced


@triton.jit
def upsample_kernel(
    x_ptr,  # [M,side,side,CHANNELS]
    weight_ptr,  # [4,4*CHANNELS,CHANNELS]
    skip_ptr,  # [B,2*side,2*side,CHANNELS]
    index_ptr,  # [M]
    out_ptr,  # [M,2*side,2*side,CHANNELS]
    sums_ptr,  # fp32 [M,4*tiles,2,CHANNELS]
    side,
    tiles,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """OUTPUTS channels of one kind of output pixel above PIXELS coarse pixels of one row."""
    parts: tl.constexpr = CHANNELS // OUTPUTS
    steps: tl.constexpr = CHANNELS // INPUTS
    kind, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    below, right = kind // 2, kind % 2
    tile, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < side * side
    y, x = pixel // side, pixel % side
    into, outof = tl.arange(0, INPUTS), part * OUTPUTS + tl.arange(0, OUTPUTS)
    plane = x_ptr + row * side * side * CHANNELS
    weights = weight_ptr + kind * 4 * CHANNELS * CHANNELS + into[:, None] * CHANNELS + outof[None, :]
    sums = tl.zeros([PIXELS, OUTPUTS], tl.float32)
    for step in range(4 * steps):
        tap = step // steps  # upper left, upper right, lower left, lower right
        from_y, from_x = y + tap // 2 + below - 1, x + tap % 2 + right - 1
        seen = inside & (from_y >= 0) & (from_y < side) & (from_x >= 0) & (from_x < side)
        source = (from_y * side + from_x) * CHANNELS + (step % steps) * INPUTS
        a = tl.load(plane + source[:, None] + into[None, :], mask=seen[:, None], other=0.0)
        b = tl.load(weights + step * INPUTS * CHANNELS)
        sums = tl.dot(a, b, sums)
    place = (2 * y + below) * (2 * side) + 2 * x + right
    place = place[:, None] * CHANNELS + outof[None, :]
    size = 4 * side * side * CHANNELS
    image = tl.load(index_ptr + row).to(tl.int64)
    sums += tl.load(skip_ptr + image * size + place, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + place, sums.to(out_ptr.dtype.element_ty), mask=inside[:, None])
    sums = tl.where(inside[:, None], sums, 0.0)
    slot = sums_ptr + ((row * 4 + kind) * tiles + tile) * 2 * CHANNELS + outof
    tl.store(slot, tl.sum(sums, 0))
    tl.store(slot + CHANNELS, tl.sum(sums * sums, 0))


def launch_upsample(
    x: Tensor,
    weight: Tensor,
    skip: Tensor,
    index: Tensor,
    blocks: tuple[int, int, int, int, int] = (128, 128, 64, 4, 3),
) -> tuple[Tensor, Tensor]:
    """`upsample` with the block sizes (pixels, outputs, inputs, warps, stages) given; the default is the fastest that
    was measured on one H200."""
    rows, side, _, channels = x.shape
    pixels, outputs, inputs, warps, stages = blocks
    outputs, inputs = min(outputs, channels), min(inputs, channels)
    tiles = triton.cdiv(side * side, pixels)
    out = torch.empty(rows, 2 * side, 2 * side, channels, dtype=x.dtype, device=x.device)
    sums = torch.empty(rows, 4 * tiles, 2, channels, dtype=torch.float32, device=x.device)
    traced(upsample_kernel)[(4 * (channels // outputs), tiles, rows)](
        x,
        weight,
        skip,
        index,
        out,
        sums,
        side,
        tiles,
        CHANNELS=channels,
        PIXELS=pixels,
        OUTPUTS=outputs,
        INPUTS=inputs,
        num_warps=warps,
        num_stages=stages,
    )
    return out, sums


@torch.library.triton_op("sam3::upsample", mutates_args={})
def upsample(x: Tensor, weight: Tensor, skip: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """`x` [M,h,h,C], `weight` [4,4C,C] as `export.fused.mask_head.fold_upsampling`
    makes it, `skip` [B,2h,2h,C], `index` int32 [M] (whose skip a row
    reads), all contiguous -> sum [M,2h,2h,C] in the dtype of x, and sums fp32 [M,tiles,2,C] of it and of its square
    over each tile of pixels. C is a power of two, 16 or more.
    """
    return launch_upsample(x, weight, skip, index)
