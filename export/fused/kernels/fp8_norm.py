"""Layer normalisation whose result is E4M3, for a linear layer in E4M3 to read.

A row is read once and written once, in a quarter of the bytes that a result in fp16 with a rounding pass would take.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.fp8_linear import LARGEST
from export.fused.kernels.launch import traced


@triton.jit
def fp8_norm_kernel(
    x_ptr,  # [rows,CHANNELS]
    weight_ptr,  # fp32 [CHANNELS]
    bias_ptr,
    out_ptr,  # E4M3 [rows,CHANNELS]
    rows,
    EPSILON: tl.constexpr,  # a package passes numbers that are no constants in double precision
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,  # CHANNELS or the next power of two
    ROWS: tl.constexpr,
):
    """ROWS rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    known = channel < CHANNELS
    inside = (row[:, None] < rows) & known[None, :]
    place = row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(known[None, :], x - (tl.sum(x, 1) / CHANNELS)[:, None], 0.0)
    spread = tl.rsqrt(tl.sum(centred * centred, 1) / CHANNELS + EPSILON)
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0)
    y = centred * spread[:, None] * weight[None, :] + bias[None, :]
    y = tl.minimum(tl.maximum(y, -LARGEST), LARGEST)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch_fp8_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, blocks: tuple[int, int] = (4, 4)
) -> Tensor:
    """`fp8_norm` with the rows of a block and the warps given."""
    count, channels = x.shape
    out = torch.empty(count, channels, dtype=torch.float8_e4m3fn, device=x.device)
    rows, warps = blocks
    traced(fp8_norm_kernel)[(triton.cdiv(count, rows),)](
        *(x, weight, bias, out, count),
        EPSILON=epsilon,
        CHANNELS=channels,
        BLOCK=1 << (channels - 1).bit_length(),
        ROWS=rows,
        num_warps=warps,
    )
    return out


@torch.library.triton_op("sam3::fp8_norm", mutates_args={})
def fp8_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation of x [n,C], contiguous, with fp32 weight and bias [C] that hold the result's scale too ->
    E4M3 [n,C], cut off at 448. Needs compute capability 8.9.
    """
    return launch_fp8_norm(x, weight, bias, epsilon)
