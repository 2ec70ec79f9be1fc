"""The kernels' operations in plain PyTorch, for machines without a GPU and for the tests, which compare the two.

Each function has the name, the arguments and the result of the operation in the file of that name in
`export/fused/kernels/`, where shapes are described. They compute in fp32 and need no Triton. Attention is
`export.sub_models.attention.attend`, as in the sub-models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export.sub_models.attention import attend, map_bias
from export.sub_models.decoder import edge_distances


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [...,n,d], with cos and sin [n,d/2]: channels i and i + d/2 are a pair."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    inverse: Tensor | None = None,
) -> Tensor:
    """Queries are rounded to their dtype once turned, as the kernel does."""
    if cos is not None and sin is not None:
        q = turn(q, cos, sin)
    bias = None if key_bias is None else key_bias[:, None, None].float()  # [N,1,1,m]
    out = attend(q.float(), k.float(), v.float(), bias, "fused")
    return out.to(q.dtype) if inverse is None else eight_bits(out.flatten(0, 1) * inverse[0])


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, windows: Tensor, _: int
) -> Tensor:
    """Queries and padded keys are rounded to their dtype once turned, as the kernel does."""
    rows, _, tokens, _ = q.shape
    q = turn(q, cos[:tokens], sin[:tokens])
    padding = turn(key[:, None].expand(-1, len(cos) - tokens, -1), cos[tokens:], sin[tokens:])  # [heads,P,d]
    found = []
    for first, count, padded, pads in windows.tolist():
        own, beside = slice(first, first + count), slice(padded, padded + pads)
        keys = torch.cat([k[:, :, own], padding[None, :, beside].expand(rows, -1, -1, -1)], 2)
        values = torch.cat([v[:, :, own], value[None, :, None].expand(rows, -1, pads, -1)], 2)
        found.append(attention(q[:, :, own], keys, values, None, None, None))
    return torch.cat(found, 1)


def box_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    bias = map_bias(rows.float(), columns.float())
    return attend(q.float(), k.float(), v.float(), bias, "fused").to(q.dtype)


def box_bias(
    low: Tensor, high: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, grid: int
) -> Tensor:
    distances = edge_distances(low, high, torch.arange(grid, device=low.device) / grid)  # [N,Q,grid,2]
    hidden = F.relu(F.linear(distances, weight1.float(), bias1.float()))
    return F.linear(hidden, weight2.float(), bias2.float()).permute(0, 3, 1, 2).to(weight2.dtype)


def upsample(x: Tensor, weight: Tensor, skip: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """All pixels of a row are one tile."""
    rows, side, _, channels = x.shape
    padded = F.pad(x.float(), (0, 0, 1, 1, 1, 1))
    out = x.new_empty(rows, side, 2, side, 2, channels, dtype=torch.float32)
    for kind in range(4):
        below, right = kind // 2, kind % 2
        corners = [(y, x) for y in (below, below + 1) for x in (right, right + 1)]
        taps = [padded[:, y : y + side, x : x + side] for y, x in corners]
        out[:, :, below, :, right] = torch.cat(taps, -1) @ weight[kind].float()
    out = out.reshape(rows, 2 * side, 2 * side, channels) + skip.float().index_select(0, index)
    sums = torch.stack([out.sum((1, 2)), out.square().sum((1, 2))], 1).unsqueeze(1)
    return out.to(x.dtype), sums


def mask_product(x: Tensor, scale: Tensor, shift: Tensor, queries: Tensor, offset: Tensor) -> Tensor:
    normed = torch.relu(x.float() * scale[:, None] + shift[:, None])
    return (queries.float() @ normed.transpose(1, 2) + offset.float()[:, :, None]).to(x.dtype)


def planes(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def eight_bits(x: Tensor) -> Tensor:
    """`x` in E4M3, cut off at its largest number."""
    return x.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scales: Tensor,
    gelu: bool,
    residual: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> Tensor:
    y = F.linear(x.float(), weight.float()) * scales[0] + bias.float()
    if gelu:
        return eight_bits(F.gelu(y, approximate="tanh") * scales[1])
    if residual is not None:
        y = y + residual.float().reshape(y.shape)
    if cos is not None and sin is not None:
        y = _turn_pairs(y, cos, sin)
    return y.to(bias.dtype)


def _turn_pairs(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries, keys and values [...,3*C] in runs of n tokens, queries and keys turned: channels 2i and 2i + 1 are a
    pair."""
    tokens, half = cos.shape
    width = y.shape[-1] // 3
    pairs = y[..., : 2 * width].reshape(-1, tokens, width // half, half, 2)  # heads of queries, then of keys
    turned = turn(torch.cat(pairs.unbind(-1), -1), cos[:, None], sin[:, None])
    pairs = torch.stack(turned.chunk(2, -1), -1).reshape(*y.shape[:-1], 2 * width)
    return torch.cat([pairs, y[..., 2 * width :]], -1)


def fp8_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return eight_bits(F.layer_norm(x.float(), weight.shape, weight, bias, epsilon))
