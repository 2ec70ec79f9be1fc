"""A copy of a channels-last map into C order, which the sub-models' records ask for.

cuDNN's convolutions read and write channels-last maps. PyTorch's own copy took 1.5 ms for a batch of 8 at 1008 on an
H200, six times what the memory needs, because it reads or writes one side two bytes at a time. Here a square of pixels
and channels is transposed on the chip.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.launch import traced


@triton.jit
def planes_kernel(
    x_ptr,
    out_ptr,  # [N,channels,pixels]
    x_batch,
    x_channel,
    x_row,
    x_column,
    channels,
    pixels,
    columns,
    PIXELS: tl.constexpr,  # of a block
    CHANNELS: tl.constexpr,
):
    """One square of one map."""
    batch = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place = (pixel // columns) * x_row + (pixel % columns) * x_column
    inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)
    square = tl.load(x_ptr + batch * x_batch + place[:, None] + channel[None, :] * x_channel, mask=inside, other=0.0)
    inside = (channel[:, None] < channels) & (pixel[None, :] < pixels)
    tl.store(out_ptr + (batch * channels + channel[:, None]) * pixels + pixel[None, :], tl.trans(square), mask=inside)


def launch_planes(x: Tensor, blocks: tuple[int, int, int] = (64, 64, 4)) -> Tensor:
    """`planes` with the block sizes (pixels, channels, warps) given."""
    batch, channels, rows, columns = x.shape
    pixel_block, channel_block, warps = blocks
    out = torch.empty(batch, channels, rows, columns, dtype=x.dtype, device=x.device)
    pixels = rows * columns
    traced(planes_kernel)[(triton.cdiv(pixels, pixel_block), triton.cdiv(channels, channel_block), batch)](
        x,
        out,
        *x.stride(),
        channels,
        pixels,
        columns,
        PIXELS=pixel_block,
        CHANNELS=channel_block,
        num_warps=warps,
    )
    return out


@torch.library.triton_op("sam3::planes", mutates_args={})
def planes(x: Tensor) -> Tensor:
    """x [N,C,H,W] in any memory format -> the same, in C order."""
    return launch_planes(x)
