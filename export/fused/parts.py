"""The five sub-models of a `Sam3Model`, written the way that one GPU without TensorRT runs them fastest.

The image transformer, the decoder and the mask head have versions of their own; text and geometry encoder take a few
milliseconds in all and stay as they are.
"""

from __future__ import annotations

from torch import nn
from transformers import Sam3Model

from export.fused.decoder import FusedDecoder
from export.fused.layers import Kernels
from export.fused.mask_head import FusedMaskHead
from export.fused.vision_encoder import FusedVisionEncoder
from export.sub_models.geometry_encoder import GeometryEncoder
from export.sub_models.precision import in_precision
from export.sub_models.text_encoder import make_text_encoder

SMALLEST_HEAD = 16
"""The fewest channels of a head that a matrix product in Triton takes."""


def make_fused_part(part: str, model: Sam3Model, precision: str, kernels: Kernels, hidden: bool = False) -> nn.Module:
    """One of `export.sub_models.parts.PARTS` in eval mode, on the CPU; with `kernels="gpu"` it has to be moved to the
    GPU to run. With `hidden` the vision encoder gives a tracker's tokens as well.

    Raises ValueError for "gpu" in fp32 (cuDNN's attention has no fp32) or with heads that are too narrow for the
    kernels.
    """
    if kernels == "gpu":
        check_kernels(model, precision)
    if part in ("text_encoder", "geometry_encoder"):
        # Their scores are small, and with the explicit form it does not matter which masks a library's kernels take.
        make = make_text_encoder if part == "text_encoder" else GeometryEncoder
        module: nn.Module = make(model, "explicit")
    else:
        fused = {"decoder": FusedDecoder, "mask_head": FusedMaskHead}
        seen = part == "vision_encoder"
        module = FusedVisionEncoder(model, kernels, hidden) if seen else fused[part](model, kernels)
    return in_precision(module.eval(), precision)


def check_kernels(model: Sam3Model, precision: str) -> None:
    """Raises ValueError where the GPU kernels cannot run this checkpoint in this precision."""
    if precision != "fp16":
        raise ValueError(f"GPU kernels compute in fp16, got precision {precision!r}; use --precision fp16")
    widths = {
        "image transformer": model.vision_encoder.backbone.layers[0].attention.head_dim,
        "decoder": model.detr_decoder.layers[0].self_attn.head_dim,
    }
    for part, width in widths.items():
        if width < SMALLEST_HEAD or width & (width - 1):
            raise ValueError(
                f"GPU kernels need attention heads of a power of two, at least {SMALLEST_HEAD} channels; this"
                f" checkpoint's {part} has {width}: use --engine onnxruntime or tensorrt"
            )
