"""What a resolution costs in arithmetic and in bytes: SAM3's widths and a resolution go in, operations per part and sizes of what must be kept come out.

First principles only: nothing here is measured. `perf/calibrate.py` turns these into milliseconds and megabytes with the help of measurements. An
operation is a multiplication or an addition, so a product of matrices [m,k]·[k,n] has 2·m·k·n of them. Normalisation, activations and additions are left
out: they are below one per cent of the arithmetic, and where they matter (bandwidth) they are part of what is calibrated.

The layers are those of transformers' `Sam3Model`; n = p² are the patches of a frame, p = resolution / 14.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ensemble.spec import check_resolution

MB = 2**20
"""Bytes in a megabyte as nvidia-smi counts it."""
FUSED_TILE = 64
"""Rows of a tile of fused attention kernels. See `score_bytes`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes that the cost depends on; the defaults are `facebook/sam3`."""

    parameters: float = 840e6
    patch: int = 14
    width: int = 1024  # of the ViT
    layers: int = 32
    global_layers: int = 4
    heads: int = 16
    mlp: int = 4736
    window: int = 24  # patches a side
    fpn: int = 256  # width of neck, DETR and masks
    encoder_layers: int = 6
    decoder_layers: int = 6
    decoder_heads: int = 8
    ffn: int = 2048
    queries: int = 200
    context: int = 32
    text_width: int = 1024
    text_layers: int = 24
    text_mlp: int = 4096

    def patches(self, resolution: int) -> int:
        """n = p². Raises ValueError where the resolution is no multiple of the patch."""
        check_resolution(resolution, self.patch)
        return (resolution // self.patch) ** 2

    def padded(self, resolution: int) -> int:
        """Patches after each side is filled up to whole windows: what windowed attention computes on."""
        return (math.ceil(resolution // self.patch / self.window) * self.window) ** 2

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Architecture:
        """Of a checkpoint's `config.json`; parameters from the size of its safetensors file at 2 bytes each, as they are kept in fp16 or bf16."""
        config = json.loads((folder / "config.json").read_text())
        vision, backbone = config["vision_config"], config["vision_config"]["backbone_config"]
        text, encoder, decoder = config["text_config"], config["detr_encoder_config"], config["detr_decoder_config"]
        weights = folder / "model.safetensors"
        return cls(
            parameters=weights.stat().st_size / 2 if weights.is_file() else cls().parameters,
            patch=backbone["patch_size"],
            width=backbone["hidden_size"],
            layers=backbone["num_hidden_layers"],
            global_layers=len(backbone["global_attn_indexes"]),
            heads=backbone["num_attention_heads"],
            mlp=backbone["intermediate_size"],
            window=backbone["window_size"],
            fpn=vision["fpn_hidden_size"],
            encoder_layers=encoder["num_layers"],
            decoder_layers=decoder["num_layers"],
            decoder_heads=decoder["num_attention_heads"],
            ffn=encoder["intermediate_size"],
            queries=decoder["num_queries"],
            context=text["max_position_embeddings"],
            text_width=text["hidden_size"],
            text_layers=text["num_hidden_layers"],
            text_mlp=text["intermediate_size"],
        )


SAM3 = Architecture()


# ---- operations
def vision_flops(resolution: int, a: Architecture = SAM3, *, pad_linears: bool = True) -> float:
    """Of one frame's vision encoder. `pad_linears`: QKV and projection run on padded windows, as in transformers; without, only attention does."""
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
    """Of one pair with masks for all queries: prompt attention, 3x3 convolutions at 2p and 4p, projection, product with the queries."""
    n, c, q = a.patches(resolution), a.fpn, queries or a.queries
    pixels = 2 * 9 * c * c * (4 * n + 16 * n)
    return n * (4 * c * c + 4 * a.context * c) + pixels + 2 * c * c * 16 * n + 2 * q * c * 16 * n


def text_flops(a: Architecture = SAM3) -> float:
    """Of one prompt; the server computes it once and keeps it."""
    return a.text_layers * a.context * (8 * a.text_width**2 + 4 * a.text_width * a.text_mlp + 4 * a.context * a.text_width)


def frame_flops(resolution: int, classes: int, a: Architecture = SAM3, queries: int | None = None, masked: float = 1.0) -> float:
    """Of one frame with `classes` prompts; `masked` is the share of pairs whose masks are made."""
    pair = decoder_flops(resolution, a, queries) + masked * mask_head_flops(resolution, a, queries)
    return vision_flops(resolution, a) + classes * pair


# ---- bytes
def weight_bytes(a: Architecture = SAM3, element: int = 2) -> float:
    return a.parameters * element


def feature_bytes(resolution: int, frames: int, a: Architecture = SAM3, element: int = 2) -> float:
    """The feature pyramid of `frames` frames, which lives from the vision encoder to the last mask: 256 channels at 4p, 2p and p."""
    return frames * 21 * a.patches(resolution) * a.fpn * element


def buffer_bytes(resolution: int, frames: int, a: Architecture = SAM3, queries: int | None = None) -> float:
    """What a pipeline with its own buffers keeps for `frames` frames: features, input in fp32, masks of one class in fp32."""
    n = a.patches(resolution)
    return feature_bytes(resolution, frames, a) + frames * (3 * resolution**2 + (queries or a.queries) * 16 * n) * 4


def score_bytes(resolution: int, frames: int, a: Architecture = SAM3, *, fused: bool | None = None) -> float:
    """Attention scores of a global layer before and after softmax, heads x n x n in fp16: nothing where the kernel is fused, gigabytes where it is not.

    `fused` None decides by a rule that was chosen with the published table in sight: fused where n is a multiple of 64. 840 (n = 3600) is the only one of the
    four resolutions where it is not, and the only one whose memory grows by gigabytes with eight cameras; two copies of the scores are that growth to 2 %.
    """
    n = a.patches(resolution)
    fused = n % FUSED_TILE == 0 if fused is None else fused
    return 0.0 if fused else 2 * frames * a.heads * n * n * 2
