"""Each exact rewrite of the tracker's sub-models against transformers' own layers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export.sub_models.tracker.arithmetic import BitUnpacker, resizing, to_tokens
from export.sub_models.tracker.mask_decoder import MaskDecoder
from export.sub_models.tracker.memory_attention import MemoryAttention, attend_to_memory, chunk_rows
from export.sub_models.tracker.memory_encoder import Block, MemoryEncoder
from export.sub_models.tracker.neck import TrackerNeck
from export.sub_models.tracker.step import TrackerStep

EXACT = 5e-6


@pytest.fixture(scope="module")
def sized(tracker):
    return tracker.at_size(140)


@pytest.fixture(scope="module")
def rotary(sized):
    attention = sized.model.memory_attention
    return attention.rotary_emb(torch.zeros(1), attention.position_ids)


def test_values_that_stay_narrow_give_the_same_attention_to_maps_and_pointers(sized, rotary, error):
    """Among them the rotary halves, the folded scale, and positions on maps but not on pointers."""
    layer = sized.model.memory_attention.layers[1]
    x, maps, points = torch.randn(2, 100, 128), torch.randn(2, 3, 100, 64), torch.randn(2, 10, 64)
    where = torch.randn(2, 310, 64)  # positions: of keys, not of values
    memory = torch.cat([maps.flatten(1, 2), points], 1)
    normed = layer.layer_norm2(x)[:, None]
    keys = (memory + where)[:, None]
    wanted, _ = layer.cross_attn_image(normed, keys, memory[:, None], position_embeddings=rotary, num_k_exclude_rope=10)

    step = TrackerStep(sized.model, sized.neck)
    mine = MemoryAttention(layer, "explicit")
    assert mine.output.in_features == 64
    placed = maps + where[:, :300].unflatten(1, (3, 100)), points + where[:, 300:]
    tables = step.cos, step.sin
    found = mine(mine.queries(x, *tables), *placed, memory, torch.zeros(2, 1, 310), *tables)
    assert error(found, wanted[:, 0]) < EXACT


def test_first_self_attention_runs_once_a_frame(sized, rotary, error):
    neck = TrackerNeck(sized.model, sized.neck)
    *_, coarse, found = neck(torch.randn(2, 100, 192))
    positions = sized.neck.position_encoding(coarse.shape, coarse.device, coarse.dtype)
    x = to_tokens(coarse + 0.1 * positions)
    layer = sized.model.memory_attention.layers[0]
    normed = layer.layer_norm1(x)[:, None]
    wanted = x + layer.self_attn(normed, normed, normed, position_embeddings=rotary)[0][:, 0]
    assert error(found, wanted) < EXACT
    assert len(TrackerStep(sized.model, sized.neck).self_attentions) == len(sized.model.memory_attention.layers) - 1


def test_folded_levels_of_the_neck(sized, error):
    neck, decoder = TrackerNeck(sized.model, sized.neck), sized.model.mask_decoder
    hidden = torch.randn(2, 100, 192)
    levels, _ = sized.neck(hidden.transpose(1, 2).unflatten(2, (10, 10)))
    wanted = decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2]
    for mine, theirs in zip(neck(hidden), wanted, strict=False):
        assert error(mine, theirs) < EXACT
    assert [sum(isinstance(m, nn.Conv2d) for m in level.modules()) for level in neck.levels] == [1, 1, 2]


def test_constant_tokens_of_the_mask_decoder(sized, error):
    model = sized.model
    x, fine, middle = torch.randn(2, 128, 10, 10), torch.randn(2, 16, 40, 40), torch.randn(2, 32, 20, 20)
    decoder = MaskDecoder(model)
    mine = decoder(to_tokens(x) + decoder.no_mask, fine, middle)
    for n in range(2):  # transformers mixes up the objects of a batch
        wanted = model._single_frame_forward(image_embeddings=[t[n : n + 1] for t in (fine, middle, x)])
        assert error(mine.logits[n], wanted.pred_masks[0, 0]) < EXACT
        assert error(mine.pointer[n], wanted.object_pointer[0, 0]) < EXACT
        assert error(mine.score[n], wanted.object_score_logits[0, 0, 0]) < EXACT
        assert error(mine.iou[n], wanted.iou_scores.max()) < EXACT


def test_projection_once_a_frame_and_scales_in_weights(sized, error):
    source, mine = sized.model.memory_encoder, MemoryEncoder(sized.model, sized.neck)
    features, masks, index = torch.randn(2, 128, 10, 10), torch.randn(3, 40, 40) * 2, torch.tensor([1, 0, 1])
    calls = []
    handle = mine.projection.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    ones = torch.ones(3, dtype=torch.int32)
    found = mine(features, index, masks, torch.full((3, 40, 5), 255, dtype=torch.uint8), 0 * ones, ones)
    handle.remove()
    assert calls == [2]
    full = F.interpolate(masks[:, None], (140, 140), mode="bilinear")
    enlarged = F.interpolate(full, (160, 160), mode="bilinear", antialias=True)
    assert error(found, to_tokens(source(features[index], enlarged.sigmoid() * 20 - 10)[0])) < EXACT
    layer, x = source.memory_fuser.layers[0], torch.randn(2, 128, 10, 10)
    assert error(Block(layer)(x), layer(x)) < EXACT


@pytest.mark.parametrize("size", [40, 42, 48])
def test_packed_masks_come_apart_as_numpy_packs_them(size):
    masks = np.random.default_rng(size).integers(0, 2, (3, size, size)).astype(bool)
    unpack = BitUnpacker(size).half()
    assert np.array_equal(unpack(torch.from_numpy(np.packbits(masks, axis=-1))).numpy() > 0, masks)


@pytest.mark.parametrize(("source", "target"), [(40, 140), (140, 40), (52, 60), (35, 40)])
def test_resizing_is_a_product(source, target, error):
    x = torch.rand(2, 1, source, source)
    wanted = F.interpolate(x, (target, target), mode="bilinear", align_corners=False, antialias=True)
    matrix = resizing(source, target)
    assert error(matrix @ x @ matrix.t(), wanted) < EXACT


def test_chunks_hold_few_scores_and_change_nothing(error, monkeypatch):
    for patches in (10, 18, 40, 48, 60, 72):
        rows = chunk_rows(patches**2)
        assert rows * 10 * patches**2 <= 1.1 * (1 << 23)  # a multiple of eight rows may be a little more
    q, k, values = torch.randn(2, 100, 128) / 11, torch.randn(2, 310, 128), torch.randn(2, 310, 64)
    bias = torch.where(torch.rand(2, 1, 310) < 0.3, -1e4, 0.0)
    whole = attend_to_memory(q, k, values, bias, "explicit")
    monkeypatch.setattr("export.sub_models.tracker.memory_attention.SCORES", 40_000)
    assert chunk_rows(100) < 50
    for form in ("chunked", "fused"):
        assert error(attend_to_memory(q, k, values, bias, form), whole) < EXACT
