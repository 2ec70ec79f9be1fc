"""Softmax attention without a score matrix in memory, with rotary positions and a bias for each key.

Library calls need a pass over memory of its own for each of the two: queries are turned by their rotary table as they
are read, and each key may have a bias (which hides a prompt's padding). The running maximum and sum follow Dao,
FlashAttention-2 (2023), algorithm 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.launch import traced

LOG2E = tl.constexpr(1.4426950408889634)  # the GPU raises two to a power, not e


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr,  # [N,heads,tokens,WIDTH], any strides of the first three
    out_ptr,  # [N,queries,heads,WIDTH]
    key_bias_ptr,  # fp32 [N,keys], or unused
    cos_ptr,  # [queries,WIDTH/2], or unused
    sin_ptr,
    inverse_ptr,  # fp32: what an E4M3 result is multiplied with, or unused
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    heads, queries, keys,
    WIDTH: tl.constexpr,  # of a head
    QUERIES: tl.constexpr,  # of a block
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,  # the number of keys is a multiple of a block
    KEY_BIAS: tl.constexpr,
    ROTARY: tl.constexpr,
    EIGHT_BITS: tl.constexpr,  # the result times `inverse` is E4M3
):  # fmt: skip
    """One block of queries of one head of one batch entry."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel, key = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    inside = query[:, None] < queries
    q_ptrs = q_ptr + batch * q_batch + head * q_head + query[:, None] * q_token
    q = tl.load(q_ptrs + channel[None, :], mask=inside, other=0.0)
    if ROTARY:
        half: tl.constexpr = WIDTH // 2
        partner = tl.load(q_ptrs + ((channel + half) % WIDTH)[None, :], mask=inside, other=0.0)
        angle = query[:, None] * half + (channel % half)[None, :]
        cos, sin = tl.load(cos_ptr + angle, mask=inside, other=0.0), tl.load(sin_ptr + angle, mask=inside, other=0.0)
        sign = tl.where(channel < half, -1.0, 1.0)[None, :]
        q = (q.to(tl.float32) * cos + partner.to(tl.float32) * sin * sign).to(q.dtype)
    k_ptrs = k_ptr + batch * k_batch + head * k_head + key[None, :] * k_token + channel[:, None]  # [WIDTH,KEYS]
    v_ptrs = v_ptr + batch * v_batch + head * v_head + key[:, None] * v_token + channel[None, :]
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, keys, KEYS):
        if WHOLE:
            k = tl.load(k_ptrs)
        else:
            k = tl.load(k_ptrs, mask=start + key[None, :] < keys, other=0.0)
        scores = tl.dot(q, k)  # [QUERIES,KEYS]
        if KEY_BIAS:
            scores += tl.load(key_bias_ptr + batch * keys + start + key, mask=start + key < keys, other=0.0)[None, :]
        if not WHOLE:
            scores = tl.where(start + key[None, :] < keys, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1) * LOG2E)
        weights = tl.exp2(scores * LOG2E - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None]
        if WHOLE:
            v = tl.load(v_ptrs)
        else:
            v = tl.load(v_ptrs, mask=start + key[:, None] < keys, other=0.0)
        out = tl.dot(weights.to(v.dtype), v, out)
        highest = higher
        k_ptrs += KEYS * k_token
        v_ptrs += KEYS * v_token
    out = out / total[:, None]
    if EIGHT_BITS:
        out = tl.minimum(tl.maximum(out * tl.load(inverse_ptr), -448.0), 448.0)
    place = ((batch * queries + query[:, None]) * heads + head) * WIDTH + channel[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


def launch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    blocks: tuple[int, int, int, int] | None = None,
    inverse: Tensor | None = None,
) -> Tensor:
    """`attention` with the block sizes (queries, keys, warps, stages) given; measured defaults otherwise."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    query_block, key_block, warps, stages = blocks or block_sizes(width, keys)
    if inverse is None:
        out = torch.empty(batch, queries, heads, width, dtype=q.dtype, device=q.device)
    else:
        out = torch.empty(batch * queries, heads * width, dtype=torch.float8_e4m3fn, device=q.device)
    traced(attention_kernel)[(triton.cdiv(queries, query_block), batch * heads)](
        *(q, k, v, out, *(q if extra is None else extra for extra in (key_bias, cos, sin, inverse))),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
        *(heads, queries, keys),
        WIDTH=width,
        QUERIES=query_block,
        KEYS=key_block,
        WHOLE=isinstance(keys, int) and keys % key_block == 0,  # a number that varies between calls always gets masks
        KEY_BIAS=key_bias is not None,
        ROTARY=cos is not None,
        EIGHT_BITS=inverse is not None,
        num_warps=warps,
        num_stages=stages,
    )
    return out.flatten(2) if inverse is None else out


WINDOW_KEYS = 1024
"""Up to here 128 queries a block are too many: of a window's 576 they would compute 640."""


def block_sizes(width: int, keys: int | torch.SymInt) -> tuple[int, int, int, int]:
    """Queries and keys of a block, warps, and stages of the load pipeline: the fastest that were measured on one H200,
    for a map's tokens and for a prompt's."""
    if not isinstance(keys, int) or keys < 128:
        return 64, 32, 4, 1
    if width < 64:
        return 64, 64, 4, 3
    return (64, 64, 4, 3) if keys <= WINDOW_KEYS else (128, 64, 8, 3)


@torch.library.triton_op("sam3::attention", mutates_args={})
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    inverse: Tensor | None = None,
) -> Tensor:
    """Softmax attention of scaled queries: q [N,heads,n,d], k and v [N,heads,m,d] (channels contiguous, any other
    strides) -> [N,n,heads*d].

    `key_bias` fp32 [N,m] is added to every query's scores. `cos` and `sin` [n,d/2] turn the queries: channel i and i +
    d/2 are a pair. d is a power of two, 16 or more. The result is contiguous and has the dtype of q; with
    `inverse`, fp32, it is multiplied with its first number and rounded to E4M3, [N*n,heads*d].
    """
    return launch_attention(q, k, v, key_bias, cos, sin, inverse=inverse)
