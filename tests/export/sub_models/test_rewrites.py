"""Each exact rewrite by itself, in PyTorch, beside the code of transformers that it replaces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers.models.sam3 import modeling_sam3 as sam3

from export.sub_models import attention, positions
from export.sub_models.decoder import BoxBias, Decoder
from export.sub_models.geometry_encoder import GeometryEncoder
from export.sub_models.mask_head import BitPacker, MaskHead, Stage
from export.sub_models.parts import PARTS, Style, make_part
from export.sub_models.precision import SpelledGroupNorm
from export.sub_models.text_encoder import TextEncoder
from export.sub_models.token_order import TokenOrder
from export.sub_models.vision_encoder import (
    PIXEL_SHIFT,
    Block,
    VisionEncoder,
    fold_normalisation,
    pyramid_level,
    rotary_rows,
    rotate,
)

EXACT = 1e-5

RESOLUTIONS = [
    pytest.param(112, id="whole windows"),
    pytest.param(126, id="padded, odd"),
    pytest.param(140, id="padded, even"),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_absolute_positions_are_tiled(sized, error, resolution):
    embeddings = sized(resolution).vision_encoder.backbone.embeddings
    p = resolution // 14
    wanted = embeddings._tile_position_embeddings(embeddings.position_embeddings, p, p)
    assert error(positions.tiled_positions(embeddings.position_embeddings, p).flatten(1, 2), wanted) == 0


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("index", [pytest.param(0, id="windowed layer"), pytest.param(1, id="global layer")])
def test_half_split_rope_gives_the_same_scores(sized, error, resolution, index):
    layer = sized(resolution).vision_encoder.backbone.layers[index]
    grid = layer.window_size or resolution // 14
    q, k = torch.randn(2, 1, 4, grid * grid, 16).unbind(0)
    wanted = sam3.apply_rotary_pos_emb_2d(q, k, *layer.rotary_emb(q, layer.position_ids))
    order = positions.halves_order(16)
    tables = positions.rope_tables(layer.rotary_emb, grid, 4)
    mine = [rotate(t[..., order], *tables) for t in (q, k)]
    assert error(mine[0] @ mine[1].mT, wanted[0] @ wanted[1].mT) < EXACT


@pytest.mark.parametrize("index", [pytest.param(0, id="windowed layer"), pytest.param(1, id="global layer")])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("form", ["explicit", "fused"])
def test_transformer_layer_in_window_order_pads_after_the_projection(sized, error, resolution, index, form):
    layer = sized(resolution).vision_encoder.backbone.layers[index]
    p = resolution // 14
    x, order = torch.randn(2, p, p, 64), TokenOrder(p, 4)
    tables = positions.rope_tables(layer.rotary_emb, layer.window_size or p, 4)
    if not layer.window_size:
        tables = tuple(t[order.raster()] for t in tables)
    found = Block(layer, order, form)(x.flatten(1, 2)[:, order.raster()], *tables)
    assert error(found, layer(x).flatten(1, 2)[:, order.raster()]) < EXACT


def test_rotary_rows_move_whole_heads_of_queries_and_keys_only():
    assert rotary_rows(heads=2, head_dim=4).tolist() == [
        0,
        2,
        1,
        3,
        4,
        6,
        5,
        7,
        *[8, 10, 9, 11, 12, 14, 13, 15],
        *range(16, 24),
    ]


def test_normalisation_folds_into_the_patch_embedding(sized, error):
    projection = sized(112).vision_encoder.backbone.embeddings.patch_embeddings.projection
    pixels = torch.randint(0, 256, (2, 3, 112, 112)).float()
    folded, offset = fold_normalisation(projection)
    assert error(folded(pixels / PIXEL_SHIFT) + offset[:, None, None], projection(pixels / 127.5 - 1)) < EXACT


@pytest.mark.parametrize("level", [0, 1, 2])
def test_pyramid_level_folds_its_projection(sized, error, level):
    source = sized(112).vision_encoder.neck.fpn_layers[level]
    x = torch.randn(2, 64, 8, 8)
    assert error(pyramid_level(source)(x), source(x)) < EXACT


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_vision_encoder(sized, error, resolution):
    model = sized(resolution)
    pixels = torch.randint(0, 256, (3, 3, resolution, resolution), dtype=torch.uint8)
    wanted = model.get_vision_features(pixels.float() / 127.5 - 1).fpn_hidden_states
    for mine, theirs in zip(VisionEncoder(model)(pixels), wanted, strict=False):
        assert error(mine, theirs) < EXACT


def test_sine_map_is_the_necks_own(sized, error):
    model = sized(126)
    wanted = model.get_vision_features(torch.zeros(1, 3, 126, 126)).fpn_position_encoding[2]
    assert error(positions.sine_map(model.vision_encoder.neck.position_encoding, 64, 9), wanted.flatten(2).mT) == 0


def test_box_sine_is_the_decoders_box_code(sized, error):
    model, boxes = sized(112), torch.rand(3, 20, 4)
    wanted = model.detr_decoder.position_encoding.encode_boxes(boxes)
    assert error(Decoder(model).box_code(boxes), wanted) < EXACT


def test_box_bias_is_the_decoders_relative_position_bias(sized, error):
    model, boxes = sized(126), torch.rand(3, 20, 4)
    decoder = model.detr_decoder
    wanted = decoder._get_rpb_matrix(boxes, (torch.tensor(9), torch.tensor(9)))
    mine = attention.map_bias(*Decoder(model).edge_bias(boxes))
    assert mine[:, :, 0].abs().max() == 0  # the presence token has no box
    assert error(mine[:, :, 1:], wanted) < EXACT
    assert isinstance(Decoder(model).bias_x, BoxBias)


def test_text_encoder_needs_no_padding_mask(sized, source, error):
    encoded = source.tokenizer.encode_batch(["red circle", "the thing on the left", ""])
    ids, mask = torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])
    model = sized(112)
    wanted = model.get_text_features(input_ids=ids, attention_mask=mask, return_dict=True).pooler_output
    assert error(TextEncoder(model)(ids.int())[mask.bool()], wanted[mask.bool()]) < EXACT


def test_first_encoder_layer_reads_an_image_once(sized, error):
    """Self-attention of the first layer for 2 images, then 5 pairs, equals the layer run on 5 gathered images."""
    model = sized(112)
    layer, image_index = model.detr_encoder.layers[0], torch.tensor([0, 1, 1, 0, 1], dtype=torch.int32)
    images, prompt = torch.randn(2, 64, 64), torch.randn(5, 32, 64)
    decoder = Decoder(model)
    mine = decoder.encoder_layers[0].read_image(images, decoder.positions).index_select(0, image_index)
    mine = decoder.encoder_layers[0].read_prompt(mine, prompt, torch.zeros(5, 1, 1, 32))
    assert error(mine, layer(images[image_index.long()], prompt, decoder.positions)) < EXACT


@pytest.mark.parametrize("upsampling", ["plain", "subpixel"])
def test_mask_stage_equals_upsample_add_convolve(sized, error, upsampling):
    pixels = sized(112).mask_decoder.pixel_decoder
    convolution, norm = pixels.conv_layers[0], pixels.norms[0]
    x, skip, image_index = (
        torch.randn(3, 64, 5, 5),
        torch.randn(2, 64, 10, 10),
        torch.tensor([1, 0, 1], dtype=torch.int32),
    )
    wanted = F.relu(norm(convolution(F.interpolate(x, size=(10, 10), mode="nearest") + skip[image_index.long()])))
    assert error(Stage(convolution, norm, upsampling)(x, skip, image_index), wanted) < EXACT


@pytest.mark.parametrize("upsampling", ["plain", "subpixel"])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_mask_head_draws_the_picked_queries(sized, error, resolution, upsampling):
    model, p = sized(resolution), resolution // 14
    features = [torch.randn(2, 64, k * p, k * p) for k in (4, 2, 1)]
    memory, queries, prompt, mask = (
        torch.randn(3, p * p, 64),
        torch.randn(3, 20, 64),
        torch.randn(3, 32, 64),
        torch.ones(3, 32),
    )
    image_of_pair = torch.tensor([0, 1, 1])
    wanted = model.mask_decoder(queries, [f[image_of_pair] for f in features], memory, prompt, mask.bool()).pred_masks
    rows, picks = torch.tensor([2, 0]), torch.tensor([[5, 0, 19], [7, 7, 1]])
    indices = (image_of_pair[rows].int(), rows.int(), picks.int())
    logits, bits = MaskHead(model, upsampling=upsampling)(
        features[0], features[1], memory, queries, prompt, mask.int(), *indices
    )
    assert error(logits, wanted[rows[:, None], picks]) < EXACT
    assert bits.shape == (2, 3, 4 * p, -(-4 * p // 8))


@pytest.mark.parametrize("size", [8, 12, 36])
def test_bits_are_packed_most_significant_first(size):
    import numpy as np

    logits = torch.randn(1, 2, 3, size)
    wanted = np.packbits(logits.numpy() > 0, axis=-1)
    for dtype in (torch.float32, torch.float16):
        packer = BitPacker(size)
        packer.powers = packer.powers.to(dtype)
        assert np.array_equal(packer(logits).numpy(), wanted)


def test_class_token_may_come_first(sized, error):
    """transformers puts it behind the last real box; with padding in between and two images."""
    model = sized(126)
    vision = model.get_vision_features(torch.randn(2, 3, 126, 126))
    boxes, labels = torch.rand(2, 4, 4) * 0.4 + 0.3, torch.tensor([[1, 0, -10, -10], [1, -10, -10, -10]])
    wanted = model.geometry_encoder(
        boxes, labels >= 0, labels.clamp(min=0), vision.fpn_hidden_states[:3], vision.fpn_position_encoding[:3]
    ).last_hidden_state
    image_index = torch.tensor([0, 1], dtype=torch.int32)
    mine = GeometryEncoder(model)(vision.fpn_hidden_states[2], image_index, boxes, labels.int())
    assert error(mine[0, :3], wanted[0, [2, 0, 1]]) < EXACT
    assert error(mine[1, :2], wanted[1, [1, 0]]) < EXACT


@pytest.mark.parametrize("part", PARTS)
def test_fp16_copy_leaves_the_checkpoint_alone_and_keeps_its_islands(sized, part):
    model = sized(112)
    before = {name: t.dtype for name, t in model.named_parameters()}
    half = make_part(part, model, Style("explicit", "plain"), "fp16")
    assert {name: t.dtype for name, t in model.named_parameters()} == before
    dtypes = {name: t.dtype for name, t in (*half.named_parameters(), *half.named_buffers()) if t.is_floating_point()}
    assert torch.float16 in dtypes.values()
    islands = tuple(half.fp32_islands) if hasattr(half, "fp32_islands") else ()
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert all(name.startswith(islands) or "norm" in name for name in kept)


@pytest.mark.parametrize("scale", [pytest.param(1.0, id="as drawn"), pytest.param(300.0, id="large")])
def test_group_normalisation_as_sums_and_products(error, scale):
    norm = torch.nn.GroupNorm(8, 64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(2, 64, 36, 36) + 3.0) * scale
    assert error(SpelledGroupNorm(norm)(x), norm(x)) < EXACT


def test_spelled_norms_leave_the_checkpoint_alone(sized, error):
    model = sized(112)
    spelled = make_part("mask_head", model, Style("chunked", "plain", spelled_norms=True), "fp32")
    assert any(isinstance(m, SpelledGroupNorm) for m in spelled.modules())
    assert not any(isinstance(m, SpelledGroupNorm) for m in model.modules())
