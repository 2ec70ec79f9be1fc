"""Attention layers of a checkpoint, with projections joined where they read the same tensor and the scale folded into
the query's weights.

They read the weights of transformers' modules and never change them. One function, `attend`, computes attention for all
sub-models in one of three forms. The explicit form exports to MatMul-Softmax-MatMul with the softmax in fp32; it is for
ONNX and TensorRT, whose fused paths were found silently wrong for this model. The chunked form is the same, but never
holds all scores of a long sequence at once. The fused form is PyTorch's own kernel.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Form = Literal["explicit", "chunked", "fused"]
QUERY_CHUNK = 576
"""Most queries in a chunk of the chunked form; as many as a window has tokens. At 1008 the scores of a global layer are
16 x 5184 x 5184: 1640 MB a frame in fp32 at once, 182 MB in nine chunks."""

MASKED = -1.0e4
"""Added to the scores of tokens that must not be seen; finite, so that no graph has to check for rows without any
token."""


def token_bias(mask: Tensor) -> Tensor:
    """Attention mask [N,S] (1 keep, 0 hide) -> additive fp32 bias [N,1,1,S]."""
    return ((1.0 - mask.float()) * MASKED)[:, None, None, :]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N,n,C] -> [N,heads,n,C/heads]"""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def map_bias(rows: Tensor, columns: Tensor) -> Tensor:
    """The bias of 1+Q queries on a map's p x p tokens, [N,heads,1+Q,p*p], from each query's bias on its rows and on its
    columns, [N,heads,Q,p]; the first query is the presence token, which has no box and so no bias."""
    return F.pad((rows.unsqueeze(4) + columns.unsqueeze(3)).flatten(3), (0, 0, 1, 0))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """Softmax attention of scaled queries: q [N,heads,n,d], k and v [N,heads,m,d], bias broadcast to [N,heads,n,m] ->
    [N,n,heads*d]."""
    if form == "fused":
        out = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), scale=1.0)
    elif form == "chunked" and bias is None and _long(q) and _long(k):
        keys = k.transpose(-1, -2)
        out = torch.cat([_explicit(part, keys, v, None) for part in q.split(chunk_rows(q.shape[2]), 2)], 2)
    else:
        out = _explicit(q, k.transpose(-1, -2), v, bias)
    return out.transpose(1, 2).flatten(2)


def _explicit(q: Tensor, keys: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Two products with a softmax in fp32 between them: q [N,heads,n,d], keys [N,heads,d,m], v [N,heads,m,d] ->
    [N,heads,n,d]."""
    scores = (q @ keys).float()  # [N,heads,n,m]
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v


def _long(x: Tensor) -> bool:
    """Whether [N,heads,n,d] has more tokens than a chunk, in a number that is known when the graph is made."""
    return isinstance(x.shape[2], int) and x.shape[2] > QUERY_CHUNK


def chunk_rows(tokens: int) -> int:
    """Queries in each chunk but the last: chunks are as even as multiples of 8 allow, on which fp16 products are
    fastest."""
    count = -(-tokens // QUERY_CHUNK)
    return -(-tokens // count // 8) * 8


class Attention(nn.Module):
    """An attention layer of transformers whose projections are joined as `inputs` says: ("qkv",), ("qk", "v"),
    ("q", "kv") or ("q", "k", "v").

    `forward` takes one tensor [N,n,C] for each entry of `inputs` and returns [N,n,C].
    """

    def __init__(self, source: nn.Module, inputs: tuple[str, ...], form: Form) -> None:
        super().__init__()
        self.heads: int = getattr(source, "num_attention_heads", None) or source.num_heads
        self.form: Form = form
        self.inputs = inputs
        self.projections = nn.ModuleList(joined_projection(source, letters) for letters in inputs)
        self.output = source.o_proj if hasattr(source, "o_proj") else source.out_proj

    def project(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [N,n,C], in this order."""
        parts: list[Tensor] = []
        for letters, projection, x in zip(self.inputs, self.projections, inputs, strict=True):
            parts += projection(x).chunk(len(letters), -1)
        return parts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """What `forward` does after `project`, for callers that project first."""
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        return self.output(attend(q, k, v, bias, self.form))

    def attend_boxes(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """`attend` with the bias of boxes that `map_bias` makes of `rows` and `columns`."""
        return self.attend(q, k, v, map_bias(rows, columns))

    def forward(self, *inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = self.project(*inputs)
        return self.attend(q, k, v, bias)


def joined_projection(source: nn.Module, letters: str) -> nn.Linear:
    """One Linear for several projections of `source`, in the order of `letters`; the query's carries the scale
    1/sqrt(head_dim)."""
    weights, biases = [], []
    for letter in letters:
        linear = getattr(source, f"{letter}_proj")
        scale = source.head_dim**-0.5 if letter == "q" else 1.0
        weights.append(linear.weight.detach() * scale)
        biases.append(linear.bias.detach() * scale)
    joined = nn.Linear(weights[0].shape[1], sum(w.shape[0] for w in weights), device="meta")
    joined.weight, joined.bias = (nn.Parameter(torch.cat(t), requires_grad=False) for t in (weights, biases))
    return joined
