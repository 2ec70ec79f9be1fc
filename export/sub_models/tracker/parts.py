"""The tracker's four sub-models of a loaded tracker, written in the style that an engine runs fastest."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from export.sub_models.parts import Style
from export.sub_models.precision import in_precision
from export.sub_models.tracker.memory_encoder import MemoryEncoder
from export.sub_models.tracker.neck import TrackerNeck
from export.sub_models.tracker.seed import TrackerSeed
from export.sub_models.tracker.step import TrackerStep

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "tracker_neck": TrackerNeck,
    "tracker_step": TrackerStep,
    "memory_encoder": MemoryEncoder,
    "tracker_seed": TrackerSeed,
}
TRACKER_PARTS = tuple(BUILDERS)


def make_tracker_part(
    part: str, model: Sam3TrackerVideoModel, neck: Sam3VisionNeck, style: Style, precision: str
) -> nn.Module:
    """One of `TRACKER_PARTS` at the model's resolution, in eval mode; the model's own modules stay as they are."""
    module: nn.Module = BUILDERS[part](model, neck, style.attention)
    if precision == "fp32" and style.attention == "fused":
        module = copy.deepcopy(module)  # this form goes to a GPU, and the checkpoint's weights must stay where they are
    return in_precision(module.eval(), precision)
