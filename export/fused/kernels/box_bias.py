"""The attention bias of boxes along one axis of a feature map: a small MLP of signed log distances from the boxes'
edges, whose hidden layer is never in memory.

For 32 pairs, 200 queries and 72 coordinates the hidden layer would be 225 MB, written and read again for each axis of
each decoder layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.launch import traced

ROWS, UNITS = 128, 32
"""Combinations of a query and a coordinate in a block, and hidden units of a step."""


@triton.jit
def box_bias_kernel(
    low_ptr,  # fp32 [N*Q]
    high_ptr,
    weight1_ptr,  # [HIDDEN,2]
    bias1_ptr,
    weight2_ptr,  # [heads,HIDDEN]
    bias2_ptr,
    out_ptr,  # [N,heads,Q,grid]
    total,  # N*Q*grid
    queries,
    grid,
    heads,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    UNITS: tl.constexpr,
    HEADS: tl.constexpr,  # heads rounded up to what a matrix product takes
):
    """ROWS combinations of a query's box and a coordinate."""
    item = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = item < total
    box, place = item // grid, item % grid
    coordinate = place.to(tl.float32) / grid
    low = coordinate - tl.load(low_ptr + box, mask=inside, other=0.0)
    high = coordinate - tl.load(high_ptr + box, mask=inside, other=0.0)
    # sign(d)*log2(|d|+1)/3 of d = 8*distance, as the checkpoint was trained
    low = tl.where(low < 0, -1.0, 1.0) * tl.log2(8.0 * tl.abs(low) + 1.0) / 3.0
    high = tl.where(high < 0, -1.0, 1.0) * tl.log2(8.0 * tl.abs(high) + 1.0) / 3.0
    head = tl.arange(0, HEADS)
    bias = tl.zeros([ROWS, HEADS], tl.float32)
    for first in tl.static_range(0, HIDDEN, UNITS):  # the whole hidden layer would not fit in registers
        unit = first + tl.arange(0, UNITS)
        from_low = tl.load(weight1_ptr + 2 * unit).to(tl.float32)
        from_high = tl.load(weight1_ptr + 2 * unit + 1).to(tl.float32)
        hidden = low[:, None] * from_low[None, :] + high[:, None] * from_high[None, :]
        hidden = tl.maximum(hidden + tl.load(bias1_ptr + unit).to(tl.float32)[None, :], 0.0)  # [ROWS,UNITS]
        weight2 = tl.load(weight2_ptr + head[None, :] * HIDDEN + unit[:, None], mask=head[None, :] < heads, other=0.0)
        bias = tl.dot(hidden.to(weight2.dtype), weight2, bias)  # [ROWS,HEADS]
    bias += tl.load(bias2_ptr + head, mask=head < heads, other=0.0).to(tl.float32)[None, :]
    image, query = box // queries, box % queries
    where = ((image[:, None] * heads + head[None, :]) * queries + query[:, None]) * grid + place[:, None]
    tl.store(out_ptr + where, bias.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (head[None, :] < heads))


def launch_box_bias(
    low: Tensor,
    high: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    grid: int,
    blocks: tuple[int, int, int] = (ROWS, UNITS, 4),
) -> Tensor:
    """`box_bias` with the block sizes (combinations, hidden units, warps) given."""
    images, queries = low.shape
    heads, hidden = weight2.shape
    rows, units, warps = blocks
    out = torch.empty(images, heads, queries, grid, dtype=weight2.dtype, device=low.device)
    total = images * queries * grid
    traced(box_bias_kernel)[(triton.cdiv(total, rows),)](
        low.contiguous(),
        high.contiguous(),
        weight1,
        bias1,
        weight2,
        bias2,
        out,
        total,
        queries,
        grid,
        heads,
        ROWS=rows,
        HIDDEN=hidden,
        UNITS=min(units, hidden),
        HEADS=max(16, triton.next_power_of_2(heads)),
        num_warps=warps,
    )
    return out


@torch.library.triton_op("sam3::box_bias", mutates_args={})
def box_bias(
    low: Tensor, high: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, grid: int
) -> Tensor:
    """Edges `low` and `high` fp32 [N,Q] in 0..1 -> bias [N,heads,Q,grid] on `grid` coordinates i/grid, in the dtype of
    the weights.

    weight1 [H,2], bias1 [H], weight2 [heads,H], bias2 [heads]: two layers with ReLU between. H is a power of two.
    """
    return launch_box_bias(low, high, weight1, bias1, weight2, bias2, grid)
