"""The arithmetic of each part of SAM3 at a resolution; `ensemble/server/memory.py` counts the bytes.

First principles only: nothing here is measured. `perf/capacity/calibrate.py` turns these into milliseconds with the
help of measurements. An operation is a multiplication or an addition, so a product of matrices [m,k]·[k,n] has 2·m·k·n
of them. Normalisation, activations and additions are left out: they are below one per cent of the arithmetic, and where
they matter (bandwidth) they are part of what is calibrated.

The layers are those of transformers' `Sam3Model`; n = p² are the patches of a frame, p = resolution / 14.
"""

from __future__ import annotations

import math

from ensemble.server.architecture import SAM3, Architecture


# ---- operations
def vision_flops(resolution: int, a: Architecture = SAM3, *, pad_linears: bool = True) -> float:
    """Of one frame's vision encoder. `pad_linears`: QKV and projection run on padded windows, as in transformers;
    without, only attention does."""
    n, padded = a.patches(resolution), a.padded(resolution)
    windowed, linear_tokens = a.layers - a.global_layers, padded if pad_linears else n
    projections = 8 * a.width**2 * (linear_tokens * windowed + n * a.global_layers)  # Q, K, V, output
    mlp = 4 * a.width * a.mlp * n * a.layers
    attention = 4 * a.width * (padded * a.window**2 * windowed + n**2 * a.global_layers)
    embedding = 2 * n * 3 * a.patch**2 * a.width
    return projections + mlp + attention + embedding + _neck_flops(n, a)


def _neck_flops(n: int, a: Architecture) -> float:
    """Three FPN levels: transposed 2x2 convolutions up to 4p and 2p, then 1x1 and 3x3 convolutions."""
    w, c = a.width, a.fpn
    half, quarter = w // 2, w // 4
    level_0 = 8 * n * w * half + 8 * 4 * n * half * quarter + 2 * 16 * n * (quarter * c + 9 * c * c)
    level_1 = 8 * n * w * half + 2 * 4 * n * (half * c + 9 * c * c)
    level_2 = 2 * n * (w * c + 9 * c * c)
    return level_0 + level_1 + level_2


def decoder_flops(resolution: int, a: Architecture = SAM3, queries: int | None = None) -> float:
    """Of one (image, class) pair: DETR encoder over p² tokens that attend to the text, DETR decoder, no masks."""
    n, c, q, s = a.patches(resolution), a.fpn, (queries or a.queries) + 1, a.context
    p = math.isqrt(n)
    encoder = n * (8 * c * c + 4 * n * c + 4 * c * c + 4 * s * c + 4 * c * a.ffn)  # itself, text, feed-forward
    image = n * 4 * c * c + 4 * n * q * c  # keys and values of the image, and attention of the queries to them
    own = q * (8 * c * c + 4 * q * c + 4 * c * c + 4 * s * c + 4 * c * c + 4 * c * a.ffn)
    bias = q * p * 2 * (4 * c + 2 * c * a.decoder_heads)  # relative position of boxes, by column and by row
    heads = q * (2 * (2 * c * c + c * c) + 2 * (2 * c * c))  # reference points, box head
    return a.encoder_layers * encoder + a.decoder_layers * (image + own + bias + heads)


def mask_head_flops(resolution: int, a: Architecture = SAM3, queries: int | None = None) -> float:
    """Of one pair with masks for all queries: prompt attention, 3x3 convolutions at 2p and 4p, projection, product with
    the queries."""
    n, c, q = a.patches(resolution), a.fpn, queries or a.queries
    pixels = 2 * 9 * c * c * (4 * n + 16 * n)
    return n * (4 * c * c + 4 * a.context * c) + pixels + 2 * c * c * 16 * n + 2 * q * c * 16 * n


def text_flops(a: Architecture = SAM3) -> float:
    """Of one prompt; the server computes it once and keeps it."""
    layer = 8 * a.text_width**2 + 4 * a.text_width * a.text_mlp + 4 * a.context * a.text_width
    return a.text_layers * a.context * layer


def frame_flops(
    resolution: int, classes: int, a: Architecture = SAM3, queries: int | None = None, masked: float = 1.0
) -> float:
    """Of one frame with `classes` prompts; `masked` is the share of pairs whose masks are made."""
    pair = decoder_flops(resolution, a, queries) + masked * mask_head_flops(resolution, a, queries)
    return vision_flops(resolution, a) + classes * pair
