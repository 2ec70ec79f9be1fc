"""Attention layers with joined projections, whole and in chunks."""

from __future__ import annotations

import pytest
import torch

from export.sub_models import attention
from export.sub_models.attention import Attention, joined_projection, token_bias
from export.sub_models.vision_encoder import VisionEncoder

EXACT = 1e-5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("form", ["explicit", "fused"])
@pytest.mark.parametrize("inputs", [("qkv",), ("qk", "v"), ("q", "kv"), ("q", "k", "v")], ids="-".join)
def test_joined_projections_attend_alike(sized, error, inputs, form):
    source = sized(112).detr_encoder.layers[0].self_attn
    letters = dict(zip("qkv", torch.randn(3, 2, 7, 64), strict=True))
    for group in inputs:  # what is joined reads the same tensor
        for letter in group[1:]:
            letters[letter] = letters[group[0]]
    mask = torch.ones(2, 7, dtype=torch.int32)
    mask[0, 3:] = 0
    wanted, _ = source(letters["q"], letters["k"], letters["v"], attention_mask=mask.bool()[:, None, None])
    mine = Attention(source, inputs, form)(*(letters[group[0]] for group in inputs), bias=token_bias(mask))
    assert error(mine, wanted) < EXACT


def test_joined_projection_scales_the_query_only(sized):
    source = sized(112).detr_encoder.layers[0].self_attn
    joined = joined_projection(source, "qk")
    assert torch.equal(joined.weight[:64], source.q_proj.weight * 0.25)
    assert torch.equal(joined.weight[64:], source.k_proj.weight)


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [
        pytest.param(5184, [576] * 9, id="1008"),
        pytest.param(3600, [520] * 6 + [480], id="840"),
        pytest.param(2304, [576] * 4, id="672"),
        pytest.param(1600, [536] * 2 + [528], id="560"),
    ],
)
def test_chunks_are_even_and_multiples_of_eight(tokens, rows):
    assert [part.shape[0] for part in torch.zeros(tokens).split(attention.chunk_rows(tokens))] == rows


@pytest.mark.parametrize("queries", [pytest.param(130, id="last chunk smaller"), pytest.param(64, id="one chunk")])
def test_attention_in_chunks_is_the_same(error, monkeypatch, queries):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 64)
    q, k, v = torch.randn(2, 4, queries, 16), torch.randn(2, 4, 130, 16), torch.randn(2, 4, 130, 16)
    assert error(attention.attend(q, k, v, None, "chunked"), attention.attend(q, k, v, None, "explicit")) < 1e-6
    bias = token_bias(torch.arange(130)[None].expand(2, -1) < 100)
    assert error(attention.attend(q, k, v, bias, "chunked"), attention.attend(q, k, v, bias, "explicit")) == 0


def test_long_attention_is_chunked_in_the_graph(sized, monkeypatch):
    """Global layers have 64 tokens at 112: with chunks of 24 that is three products of scores where the explicit form
    has one."""
    monkeypatch.setattr(attention, "QUERY_CHUNK", 24)

    def softmaxes(form):
        encoder = VisionEncoder(sized(112), form)
        program = torch.export.export(encoder, (torch.zeros(2, 3, 112, 112, dtype=torch.uint8),))
        return sum("softmax" in str(node.target) for node in program.graph.nodes)

    assert softmaxes("explicit") == 4
    assert softmaxes("chunked") == 2 + 2 * 3
