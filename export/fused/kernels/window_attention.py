"""Attention inside the windows of a map that they do not fill, over tokens in window order without the padding.

SAM3 pads such a map with zeros and lets everything attend to them. A padded token is zero before the projection, so its
key and value are the projection's bias, the key turned by its position. Nothing has to be padded here, then: a window
is a run of real tokens, no query is computed for padding, and padded keys are computed from the one bias when they are
needed; their values are all the same, so only their weights are added up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from export.fused.kernels.attention import LOG2E
from export.fused.kernels.launch import traced

BLOCK = dict(QUERIES=64, KEYS=64, num_warps=4, num_stages=3)
"""Block sizes, those of `attention` for windows."""


@triton.jit
def window_attention_kernel(
    q_ptr, k_ptr, v_ptr,  # [N,heads,tokens,WIDTH], any strides of the first three
    out_ptr,  # [N,tokens,heads,WIDTH]
    key_bias_ptr,  # [heads,WIDTH]
    value_bias_ptr,
    cos_ptr,  # [tokens+padded,WIDTH/2]
    sin_ptr,
    windows_ptr,  # int32 [windows,4]: first token, tokens, first padded, padded
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    heads, tokens,
    WIDTH: tl.constexpr,  # of a head
    QUERIES: tl.constexpr,  # of a block
    KEYS: tl.constexpr,
    BLOCKS: tl.constexpr,  # of the longest window
):  # fmt: skip
    """One block of queries of one head in one window of one batch entry."""
    window, offset = windows_ptr + 4 * (tl.program_id(0) // BLOCKS), (tl.program_id(0) % BLOCKS) * QUERIES
    first, count, padded, pads = tl.load(window), tl.load(window + 1), tl.load(window + 2), tl.load(window + 3)
    if offset < count:
        half: tl.constexpr = WIDTH // 2
        batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
        channel, key = tl.arange(0, WIDTH), tl.arange(0, KEYS)
        other, sign = (channel + half) % WIDTH, tl.where(channel < half, -1.0, 1.0)
        query = offset + tl.arange(0, QUERIES)
        inside, token = query[:, None] < count, first + query[:, None]
        q_ptrs = q_ptr + batch * q_batch + head * q_head + token * q_token
        q = tl.load(q_ptrs + channel[None, :], mask=inside, other=0.0)
        partner = tl.load(q_ptrs + other[None, :], mask=inside, other=0.0)
        angle = token * half + (channel % half)[None, :]
        cos, sin = tl.load(cos_ptr + angle, mask=inside, other=0.0), tl.load(sin_ptr + angle, mask=inside, other=0.0)
        q = (q.to(tl.float32) * cos + partner.to(tl.float32) * sin * sign[None, :]).to(q.dtype)
        highest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        out = tl.zeros([QUERIES, WIDTH], tl.float32)
        # k [WIDTH,KEYS], v [KEYS,WIDTH]
        k_ptrs = k_ptr + batch * k_batch + head * k_head + (first + key[None, :]) * k_token + channel[:, None]
        v_ptrs = v_ptr + batch * v_batch + head * v_head + (first + key[:, None]) * v_token + channel[None, :]
        for start in range(0, count, KEYS):
            k = tl.load(k_ptrs, mask=start + key[None, :] < count, other=0.0)
            scores = tl.where(start + key[None, :] < count, tl.dot(q, k), float("-inf"))  # [QUERIES,KEYS]
            higher = tl.maximum(highest, tl.max(scores, 1) * LOG2E)
            weights = tl.exp2(scores * LOG2E - higher[:, None])
            shrink = tl.exp2(highest - higher)
            total = total * shrink + tl.sum(weights, 1)
            v = tl.load(v_ptrs, mask=start + key[:, None] < count, other=0.0)
            out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None])
            highest = higher
            k_ptrs += KEYS * k_token
            v_ptrs += KEYS * v_token
        bias = tl.load(key_bias_ptr + head * WIDTH + channel).to(tl.float32)[:, None]
        swapped = tl.load(key_bias_ptr + head * WIDTH + other).to(tl.float32)[:, None] * sign[:, None]
        value = tl.load(value_bias_ptr + head * WIDTH + channel).to(tl.float32)
        for start in range(0, pads, KEYS):
            seen = start + key[None, :] < pads
            turns = (tokens + padded + start + key[None, :]) * half + (channel % half)[:, None]  # [WIDTH,KEYS]
            key_cos = tl.load(cos_ptr + turns, mask=seen, other=0.0)
            key_sin = tl.load(sin_ptr + turns, mask=seen, other=0.0)
            scores = tl.where(seen, tl.dot(q, (bias * key_cos + swapped * key_sin).to(q.dtype)), float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1) * LOG2E)
            weight = tl.sum(tl.exp2(scores * LOG2E - higher[:, None]), 1)
            shrink = tl.exp2(highest - higher)
            total = total * shrink + weight
            out = out * shrink[:, None] + weight[:, None] * value[None, :]
            highest = higher
        place = ((batch * tokens + token) * heads + head) * WIDTH + channel[None, :]
        tl.store(out_ptr + place, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


@torch.library.triton_op("sam3::window_attention", mutates_args={})
def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor,
    value_bias: Tensor,
    cos: Tensor,
    sin: Tensor,
    windows: Tensor,
    longest: int,
) -> Tensor:
    """Softmax attention of scaled queries inside windows: q, k and v [N,heads,n,d] (channels contiguous, any other
    strides) -> [N,n,heads*d].

    `windows` int32 [W,4] says of each window its first token and how many there are, and its first padded token and how
    many those are; `longest` is the most tokens of a window. `key_bias` and `value_bias` [heads,d] are what a padded
    token's key, before it is turned, and value are. `cos` and `sin` [n+P,d/2] turn the queries of the n tokens and the
    keys of the P padded ones; the tokens' own keys come turned. The result is contiguous and has the dtype of q.
    """
    batch, heads, tokens, width = q.shape
    parts = triton.cdiv(longest, BLOCK["QUERIES"])
    out = torch.empty(batch, tokens, heads, width, dtype=q.dtype, device=q.device)
    traced(window_attention_kernel)[(windows.shape[0] * parts, batch * heads)](
        *(q, k, v, out, key_bias, value_bias, cos, sin, windows),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
        *(heads, tokens),
        WIDTH=width,
        BLOCKS=parts,
        **BLOCK,
    )
    return out.flatten(2)
