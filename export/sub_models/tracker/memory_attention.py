"""The layers that compare a frame with what objects remember: self-attention, attention to the memory, feed-forward.

Three exact savings against transformers' layers. Values stay as wide as the memory: o(v(x)) is one product behind the
attention, because each row of a softmax adds up to 1, so the attention's second product is a quarter as large. Rotary
pairs are halves (a permutation of queries and keys alike). And the scale is part of the queries' weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.sub_models.attention import Form, attend, joined_projection
from export.sub_models.positions import halves_order
from export.sub_models.precision import layer_norm
from export.sub_models.vision_encoder import rotary_rows, rotate

SCORES = 1 << 23
"""Most scores of one object that are held at once: 32 MB in fp32, where all at 1008 are 1,077 MB."""


class SelfAttention(nn.Module):
    """x -> x + attention of x [N,p*p,C] to itself, with rotary positions."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        super().__init__()
        source = layer.self_attn
        joined = joined_projection(source, "qkv")
        rows = rotary_rows(1, source.head_dim)
        self.qkv = _linear(joined.weight[rows], joined.bias[rows])
        self.norm, self.output, self.form = layer.layer_norm1, source.o_proj, form

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(layer_norm(self.norm, x)).unsqueeze(1).chunk(3, -1)  # [N,1,p*p,C]
        return x + self.output(attend(rotate(q, cos, sin), rotate(k, cos, sin), v, None, self.form))


class MemoryAttention(nn.Module):
    """Attention of a frame's tokens to memory maps, which have rotary positions, and to pointers, which have none."""

    def __init__(self, layer: nn.Module, form: Form) -> None:
        super().__init__()
        source = layer.cross_attn_image
        order = halves_order(source.head_dim)
        query, key = (joined_projection(source, letter) for letter in "qk")
        self.query, self.key = (_linear(linear.weight[order], linear.bias[order]) for linear in (query, key))
        value, output = source.v_proj, source.o_proj
        weight = output.weight.detach() @ value.weight.detach()  # [C,64]
        self.output = _linear(weight, output.weight.detach() @ value.bias.detach() + output.bias.detach())
        self.norm, self.form = layer.layer_norm2, form

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Tokens [N,p*p,C] -> scaled and rotated queries [N,p*p,C]"""
        return rotate(self.query(layer_norm(self.norm, x)), cos, sin)

    def forward(
        self, q: Tensor, maps: Tensor, points: Tensor, values: Tensor, bias: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Queries [N,p*p,C], `maps` [N,M,p*p,64] and `points` [N,P,64] with their positions added, `values`
        [N,M*p*p+P,64] without, `bias` fp32 [N,1,M*p*p+P] -> [N,p*p,C]"""
        rotated = rotate(self.key(maps), cos, sin).flatten(1, 2)  # every map has the same positions
        keys = torch.cat([rotated, self.key(points)], 1)  # [N,M*p*p+P,C]
        return self.output(attend_to_memory(q, keys, values, bias, self.form))


class FeedForward(nn.Module):
    """x -> x + what the two linear layers make of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.first, self.second = layer.layer_norm3, layer.linear1, layer.linear2
        self.activation = layer.activation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.activation(self.first(layer_norm(self.norm, x))))


def attend_to_memory(q: Tensor, k: Tensor, values: Tensor, bias: Tensor, form: Form) -> Tensor:
    """Softmax attention with one head whose values are narrower than its queries: q [N,n,C], k [N,m,C], values
    [N,m,64], bias fp32 [N,1,m] -> [N,n,64]. In all forms but PyTorch's own it works through the queries in chunks.

    PyTorch's own (cuDNN) is faster than a kernel for these widths, in Triton, that was tried beside it: on one H200
    1.06 against 1.20 ms for eight objects with ten maps at 672, 3.5 against 4.5 ms at 1008.
    """
    if form == "fused":
        query, key, value, hidden = (t.unsqueeze(1) for t in (q, k, values, bias.to(q.dtype)))
        return F.scaled_dot_product_attention(query, key, value, hidden, scale=1.0).squeeze(1)
    keys = k.transpose(1, 2)
    parts = q.split(chunk_rows(q.shape[1]), 1)
    return torch.cat([((part @ keys).float() + bias).softmax(-1).to(values.dtype) @ values for part in parts], 1)


def chunk_rows(tokens: int) -> int:
    """Queries in each chunk but the last, of a frame of so many tokens, where the memory has ten maps and it counts."""
    count = -(-tokens * 10 * tokens // SCORES)
    return -(-tokens // count // 8) * 8


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (nn.Parameter(t.detach().clone(), requires_grad=False) for t in (weight, bias))
    return linear
