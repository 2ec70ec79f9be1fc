"""Attention of box queries on a map, with a bias for how far a pixel is from the edges of a query's box.

A library takes such a bias only as a full tensor [N,heads,Q,p*p]: 506 MB for 32 pairs at 1008, made, written and read
in each of six layers. The bias is the sum of a row's and a column's number, and here a step of the loop is one row of
the map: the columns' numbers stay in registers for the whole loop, and the row's is one number for each query.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.attention import LOG2E
from export.fused.kernels.launch import traced


@triton.jit
def box_attention_kernel(
    q_ptr, k_ptr, v_ptr,  # [N,heads,tokens,WIDTH], any strides of the first three
    out_ptr,  # [N,queries,heads,WIDTH]
    rows_ptr,  # [N,heads,queries-1,grid]
    columns_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    heads, queries, grid,
    WIDTH: tl.constexpr,  # of a head
    QUERIES: tl.constexpr,  # of a block
    COLUMNS: tl.constexpr,  # grid, rounded up to a power of two
):  # fmt: skip
    """One block of queries of one head of one batch entry."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel, column = tl.arange(0, WIDTH), tl.arange(0, COLUMNS)
    inside, seen = query < queries, column < grid
    q_ptrs = q_ptr + batch * q_batch + head * q_head + query[:, None] * q_token
    q = tl.load(q_ptrs + channel[None, :], mask=inside[:, None], other=0.0)
    k_ptrs = k_ptr + batch * k_batch + head * k_head + column[None, :] * k_token + channel[:, None]  # [WIDTH,COLUMNS]
    v_ptrs = v_ptr + batch * v_batch + head * v_head + column[:, None] * v_token + channel[None, :]
    boxed = inside & (query >= 1)  # the first query is the presence token: no box, no bias
    box = ((batch * heads + head) * (queries - 1) + query - 1) * grid
    across = tl.load(columns_ptr + box[:, None] + column[None, :], mask=boxed[:, None] & seen[None, :], other=0.0)
    across = tl.where(seen[None, :], across.to(tl.float32), float("-inf"))  # [QUERIES,COLUMNS]
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, WIDTH], tl.float32)
    for row in range(0, grid):
        k = tl.load(k_ptrs, mask=seen[None, :], other=0.0)
        down = tl.load(rows_ptr + box + row, mask=boxed, other=0.0).to(tl.float32)
        scores = tl.dot(q, k) + across + down[:, None]
        higher = tl.maximum(highest, tl.max(scores, 1) * LOG2E)
        weights = tl.exp2(scores * LOG2E - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None]
        v = tl.load(v_ptrs, mask=seen[:, None], other=0.0)
        out = tl.dot(weights.to(v.dtype), v, out)
        highest = higher
        k_ptrs += grid * k_token
        v_ptrs += grid * v_token
    out = out / total[:, None]
    place = ((batch * queries + query[:, None]) * heads + head) * WIDTH + channel[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def launch_box_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, blocks: tuple[int, int, int] = (64, 4, 2)
) -> Tensor:
    """`box_attention` with the block sizes (queries, warps, stages) given."""
    batch, heads, queries, width = q.shape
    grid = rows.shape[-1]
    query_block, warps, stages = blocks
    out = torch.empty(batch, queries, heads, width, dtype=q.dtype, device=q.device)
    traced(box_attention_kernel)[(triton.cdiv(queries, query_block), batch * heads)](
        *(q, k, v, out, rows, columns),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
        *(heads, queries, grid),
        WIDTH=width,
        QUERIES=query_block,
        COLUMNS=max(16, triton.next_power_of_2(grid)),
        num_warps=warps,
        num_stages=stages,
    )
    return out.flatten(2)


@torch.library.triton_op("sam3::box_attention", mutates_args={})
def box_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Softmax attention of scaled queries q [N,heads,1+Q,d] on a map's tokens k and v [N,heads,p*p,d] in lines of p ->
    [N,1+Q,heads*d].

    `rows` and `columns` [N,heads,Q,p], contiguous, are added to the scores of all queries but the first. d is a power
    of two, 16 or more; q, k and v have contiguous channels and any other strides. The result is contiguous and has the
    dtype of q.
    """
    return launch_box_attention(q, k, v, rows, columns)
