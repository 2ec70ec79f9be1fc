"""Softmax attention with one wide head whose values are narrower than its queries and keys: a frame's tokens looking at
what an object remembers.

Library calls widen the values to the keys' width, which makes the second product four times as long. The sequence is
long and its length varies, so that only the last block of keys is masked. The running maximum and sum follow Dao,
FlashAttention-2 (2023), algorithm 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.launch import traced

LOG2E = tl.constexpr(1.4426950408889634)  # the GPU raises two to a power, not e
BLOCKS = (128, 128, 8, 2)
"""Queries and keys of a block, warps, and stages of the load pipeline, where a block has LARGE bytes to share."""
SMALL_BLOCKS = (64, 64, 8, 2)
LARGE = 224 * 1024


@triton.jit
def memory_attention_kernel(
    q_ptr,  # [N,queries,WIDTH]
    k_ptr,  # [N,keys,WIDTH]
    v_ptr,  # [N,keys,VALUE_WIDTH]
    bias_ptr,  # fp32 [N,keys]
    out_ptr,  # [N,queries,VALUE_WIDTH]
    queries, keys,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,  # of a block
    KEYS: tl.constexpr,
):  # fmt: skip
    """One block of queries of one object."""
    batch = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel, place, key = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH), tl.arange(0, KEYS)
    inside = query[:, None] < queries
    q = tl.load(q_ptr + (batch * queries + query[:, None]) * WIDTH + channel[None, :], mask=inside, other=0.0)
    k_ptrs = k_ptr + (batch * keys + key[None, :]) * WIDTH + channel[:, None]  # [WIDTH,KEYS]
    v_ptrs = v_ptr + (batch * keys + key[:, None]) * VALUE_WIDTH + place[None, :]
    bias_ptrs = bias_ptr + batch * keys + key
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, VALUE_WIDTH], tl.float32)
    whole = keys - keys % KEYS
    for _ in range(0, whole, KEYS):
        scores = (tl.dot(q, tl.load(k_ptrs)) + tl.load(bias_ptrs)[None, :]) * LOG2E
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(v_ptr.dtype.element_ty), tl.load(v_ptrs), out * shrink[:, None])
        highest = higher
        k_ptrs += KEYS * WIDTH
        v_ptrs += KEYS * VALUE_WIDTH
        bias_ptrs += KEYS
    if whole < keys:
        here = whole + key < keys
        scores = tl.dot(q, tl.load(k_ptrs, mask=here[None, :], other=0.0))
        scores = (scores + tl.load(bias_ptrs, mask=here, other=float("-inf"))[None, :]) * LOG2E
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(v_ptrs, mask=here[:, None], other=0.0)
        out = tl.dot(weights.to(v_ptr.dtype.element_ty), v, out * shrink[:, None])
    out = out / total[:, None]
    out_ptrs = out_ptr + (batch * queries + query[:, None]) * VALUE_WIDTH + place[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=inside)


def launch_memory_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, blocks: tuple[int, int, int, int] | None = None
) -> Tensor:
    """`memory_attention` with the block sizes given; measured defaults otherwise."""
    batch, queries, width = q.shape
    query_block, key_block, warps, stages = blocks or block_sizes(q.device)
    out = torch.empty(batch, queries, v.shape[2], dtype=q.dtype, device=q.device)
    traced(memory_attention_kernel)[(triton.cdiv(queries, query_block), batch)](
        *(q, k, v, bias, out, queries, k.shape[1]),
        WIDTH=width,
        VALUE_WIDTH=v.shape[2],
        QUERIES=query_block,
        KEYS=key_block,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def block_sizes(device: torch.device) -> tuple[int, int, int, int]:
    """For keys of 256 channels, as SAM3's are: Hopper and data-centre Blackwell have room for large blocks."""
    if device.type != "cuda":
        return SMALL_BLOCKS
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return BLOCKS if shared >= LARGE else SMALL_BLOCKS


@torch.library.triton_op("sam3::memory_attention", mutates_args={})
def memory_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Scaled queries q [N,n,d], keys k [N,m,d], values v [N,m,e], `bias` fp32 [N,m] added to every query's scores ->
    [N,n,e] in the dtype of q. d and e are powers of two, 16 or more; all are read in C order."""
    return launch_memory_attention(*(tensor.contiguous() for tensor in (q, k, v, bias)))
