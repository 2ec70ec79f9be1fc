"""The five sub-models of a `Sam3Model`, written in the style that an engine runs fastest."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn
from transformers import Sam3Model

from export.fused.parts import make_fused_part
from export.sub_models.attention import Form
from export.sub_models.decoder import Decoder
from export.sub_models.geometry_encoder import GeometryEncoder
from export.sub_models.mask_head import MaskHead, Upsampling
from export.sub_models.precision import in_precision, spell_group_norms
from export.sub_models.text_encoder import make_text_encoder
from export.sub_models.vision_encoder import VisionEncoder

BUILDERS = {
    "vision_encoder": VisionEncoder,
    "text_encoder": make_text_encoder,
    "geometry_encoder": GeometryEncoder,
    "decoder": Decoder,
}
PARTS = (*BUILDERS, "mask_head")


@dataclass(frozen=True, slots=True)
class Style:
    """The form of attention, how the mask head upsamples, whether fp16 runs this project's GPU kernels, and whether
    group normalisation is written as sums and products; the result is the same."""

    attention: Form
    upsampling: Upsampling
    kernels: bool = False
    spelled_norms: bool = False


def make_part(part: str, model: Sam3Model, style: Style, precision: str, hidden: bool = False) -> nn.Module:
    """One of `PARTS`, in eval mode; its weights are the model's own for "fp32" in the explicit and the chunked form,
    and copies otherwise. With `hidden` the vision encoder gives a tracker's tokens as well."""
    if style.kernels and precision == "fp16":
        return make_fused_part(part, model, precision, "gpu", hidden)
    if part == "mask_head":  # the only one that upsamples
        module: nn.Module = MaskHead(model, style.attention, style.upsampling)
    elif part == "vision_encoder":
        module = VisionEncoder(model, style.attention, hidden)
    else:
        module = BUILDERS[part](model, style.attention)
    if style.spelled_norms:
        spell_group_norms(module)
    if precision == "fp32" and style.attention == "fused":
        module = copy.deepcopy(module)  # this form goes to a GPU, and the checkpoint's weights must stay where they are
    return in_precision(module.eval(), precision)
