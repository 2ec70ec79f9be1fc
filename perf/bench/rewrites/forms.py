"""The two forms of each exact rewrite, as written and rewritten, on the same layers and the same random tensors.

They differ in that rewrite alone: whatever else can be the same (kernels, joined projections, memory formats) is. The
rewritten forms are made of the sub-models' own modules; the forms as written of the same modules where those can be
told to, and of transformers' and PyTorch's otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import apply_rotary_pos_emb_2d

from export.fused.decoder import FusedEncoderLayer
from export.fused.layers import operation
from export.fused.mask_head import FusedMaskHead, FusedStage
from export.fused.vision_encoder import FusedBlock, half_tables, places_tables
from export.sub_models.mask_head import MaskHead, subpixel_convolution
from export.sub_models.positions import rope_tables, sine_map, tiled_positions
from export.sub_models.token_order import TokenOrder
from export.sub_models.vision_encoder import PIXEL_SHIFT, fold_normalisation
from perf.bench.engines.cases import PICKS
from perf.bench.rewrites.case import Case, Forms, Rewrite


def position_tables(case: Case) -> Forms:
    """Absolute positions are added to tokens [B,p*p,C]; queries and keys [2,windows,heads,tokens,d] are turned, in
    every layer of the image transformer."""
    vit, p = case.model.vision_encoder.backbone, case.patches
    attention, w = vit.layers[0].attention, vit.config.window_size
    heads, width = attention.num_attention_heads, attention.head_dim
    tokens = case.random(case.frames, p * p, vit.config.hidden_size)
    table = case.cast(vit.embeddings.position_embeddings)
    tiled = case.cast(tiled_positions(vit.embeddings.position_embeddings, p).flatten(1, 2))
    sizes = {w: (case.frames * (-(-p // w)) ** 2, w * w), 0: (case.frames, p * p)}
    states = {window: case.random(2, count, heads, n, width) for window, (count, n) in sizes.items()}
    # The modules that make the tables stay in fp32, as in a half-precision model of transformers.
    layers = [
        (copy.deepcopy(m.rotary_emb).to(case.device), m.position_ids.to(case.device), m.window_size) for m in vit.layers
    ]
    constants = {window: rotary(tokens, ids) for rotary, ids, window in layers}

    def turned(tables: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
        found = {}
        for (_, _, window), both in zip(layers, tables, strict=True):
            found[window] = apply_rotary_pos_emb_2d(*states[window], *both)
        return [t for both in found.values() for t in both]

    def written() -> list[Tensor]:
        added = tokens + vit.embeddings._tile_position_embeddings(table, p, p)
        return [added, *turned(rotary(tokens, ids) for rotary, ids, _ in layers)]

    return written, lambda: [tokens + tiled, *turned(constants[window] for _, _, window in layers)]


def features_once(case: Case) -> Forms:
    """Skip maps, already convolved, as the mask head's stages read them."""
    run = operation("upsample", case.kernels)
    index, every = case.image_index, case.every
    stages = []
    for convolution, norm, x, skip in case.stages():
        folded = case.ready(FusedStage(convolution, norm, case.kernels)).folded
        stages.append((x.permute(0, 2, 3, 1), folded, skip.permute(0, 2, 3, 1)))
    return (
        lambda: [run(x, folded, skip.index_select(0, index), every)[0] for x, folded, skip in stages],
        lambda: [run(x, folded, skip, index)[0] for x, folded, skip in stages],
    )


def first_attention(case: Case) -> Forms:
    layer = case.ready(FusedEncoderLayer(case.model.detr_encoder.layers[0], case.kernels))
    positions = case.cast(sine_map(case.model.vision_encoder.neck.position_encoding, case.width, case.patches))
    images, index = case.random(case.frames, case.patches**2, case.width), case.image_index
    return (
        lambda: [layer.read_image(images.index_select(0, index), positions)],
        lambda: [layer.read_image(images, positions).index_select(0, index)],
    )


def masks(head: nn.Module, queries: Tensor, pixels: Tensor) -> Tensor:
    """Mask logits [N,T,16*p*p] of embedded queries [N,T,C], as the mask head makes them."""
    return head.projection(queries) @ pixels.flatten(2) + queries @ head.projection_bias


def instance_projection(case: Case) -> Forms:
    head, projection = case.ready(MaskHead(case.model)), case.ready(case.model.mask_decoder.instance_projection)
    pixels, queries = case.maps(len(case.every), 4), case.per_pair(PICKS, case.width)
    return lambda: [queries @ projection(pixels).flatten(2)], lambda: [masks(head, queries, pixels)]


Stage = tuple[nn.Module, nn.Module, Tensor, Tensor]
"""A convolution, its rewritten form, coarse maps and skip maps."""


def plain_convolutions(stages: list[Stage], rows: Tensor) -> list[Tensor]:
    """Both stages' convolutions [N,C,2h,2h] as transformers writes them; `rows` (int64, for index_select loses the
    memory format) are the pairs' images."""
    return [whole(F.interpolate(x, scale_factor=2.0, mode="nearest") + skip[rows]) for whole, _, x, skip in stages]


def transposed_convolution(case: Case) -> Forms:
    stages = [(case.ready(c), case.ready(subpixel_convolution(c)), x, skip) for c, _, x, skip in case.stages()]
    rows = case.image_index.long()
    return (
        lambda: plain_convolutions(stages, rows),
        lambda: [transposed(x) + whole(skip)[rows] for whole, transposed, x, skip in stages],
    )


def convolution_kernel(case: Case) -> Forms:
    """The kernel also takes the sums for the group normalisation, which would be a pass of its own."""
    stages = [
        (case.ready(c), case.ready(FusedStage(c, norm, case.kernels)), x, skip) for c, norm, x, skip in case.stages()
    ]
    index = case.image_index
    return (
        lambda: plain_convolutions(stages, index.long()),
        lambda: [stage(x.permute(0, 2, 3, 1), skip, index)[0].permute(0, 3, 1, 2) for _, stage, x, skip in stages],
    )


def selected_queries(case: Case) -> Forms:
    head, pixels = case.ready(MaskHead(case.model)), case.maps(len(case.every), 4)
    queries, picks = case.per_pair(case.queries, case.width), torch.randperm(case.queries)[:PICKS].to(case.device)
    return (
        lambda: [masks(head, queries, pixels).index_select(1, picks)],
        lambda: [masks(head, queries.index_select(1, picks), pixels)],
    )


def present_pairs(case: Case) -> Forms:
    head, index, every, tokens = case.ready(FusedMaskHead(case.model, case.kernels)), case.image_index, case.every, 32
    some = every[::4].contiguous()
    prompts = case.per_pair(tokens, case.width), torch.ones_like(every)[:, None].expand(-1, tokens)
    features = case.maps(case.frames, 4), case.maps(case.frames, 2), case.per_pair(case.patches**2, case.width)
    queries = case.per_pair(case.queries, case.width)
    picks = torch.randint(case.queries, (len(every), PICKS), device=case.device, dtype=torch.int32)

    def made(rows: Tensor) -> Tensor:
        return head(*features, queries, *prompts, index.index_select(0, rows), rows, picks.index_select(0, rows))[0]

    return lambda: [made(every).index_select(0, some)], lambda: [made(some)]


def normalisation(case: Case) -> Forms:
    vit, size = case.model.vision_encoder.backbone, case.model.config.vision_config.image_size
    source = vit.embeddings.patch_embeddings.projection
    module, offset = fold_normalisation(source)
    tiled = tiled_positions(vit.embeddings.position_embeddings, case.patches).permute(0, 3, 1, 2)  # [1,C,p,p]
    positions, shifted = case.cast(tiled), case.cast(tiled + offset[:, None, None])
    plain, folded, dtype = case.ready(source), case.ready(module), positions.dtype
    pixels = torch.randint(256, (case.frames, 3, size, size), device=case.device, dtype=torch.uint8)
    return (
        lambda: [plain(pixels.to(dtype) / 127.5 - 1) + positions],
        lambda: [folded(pixels.to(dtype) * (1 / PIXEL_SHIFT)) + shifted],
    )


def window_padding(case: Case) -> Forms:
    """Attention of a windowed layer over tokens in window order. Windows that come padded are, to the same module, maps
    that one window fills."""
    vit, p = case.model.vision_encoder.backbone, case.patches
    layer = next(m for m in vit.layers if m.window_size)
    w = layer.window_size
    order = TokenOrder(p, w)
    on_windows, on_tokens = (case.ready(FusedBlock(layer, o, case.kernels)) for o in (TokenOrder(w, w), order))
    tables = half_tables(*rope_tables(layer.rotary_emb, w, w))
    (cos, sin), (own_cos, own_sin) = ([case.cast(t) for t in both] for both in (tables, places_tables(*tables, order)))
    x = case.random(case.frames, p * p, vit.config.hidden_size)
    own, held = (slots.to(case.device) for slots in order.slots())

    def written() -> list[Tensor]:
        windows = F.pad(x, (0, 0, 0, 1)).index_select(1, held).reshape(-1, w * w, x.shape[-1])
        return [on_windows.attention(windows, cos, sin).reshape(case.frames, -1, x.shape[-1]).index_select(1, own)]

    return written, lambda: [on_tokens.attention(x, own_cos, own_sin)]


REWRITES = (
    Rewrite("1 positions, RoPE tables", "made in every layer / constants", position_tables),
    Rewrite("2 image features", "repeated for each pair / read by index", features_once),
    Rewrite("3 first attention of the DETR encoder", "for each pair / once per image", first_attention),
    Rewrite(f"4 instance projection, {PICKS} masks", "of the map / of the queries", instance_projection),
    Rewrite("5 convolution of an upsampled map", "plain / transposed, skip once per image", transposed_convolution),
    Rewrite("5 the same, this project's kernel", "plain / sub-pixel, skip once per image", convolution_kernel),
    Rewrite("6 mask product", f"all queries / {PICKS}", selected_queries),
    Rewrite(f"6 mask head, {PICKS} masks", "all pairs / one of four", present_pairs),
    Rewrite("7 uint8 frames", "normalised / folded into the patch embedding", normalisation),
)
PADDED = Rewrite("8 attention in padded windows", "of all tokens / of those on the map", window_padding)
"""For resolutions at which windows do not fill the map."""
