"""A checkpoint's tracker: the part of SAM3's video model that follows objects, and its own neck behind the image
transformer."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import Sam3TrackerVideoConfig, Sam3TrackerVideoModel, Sam3VisionConfig
from transformers.initialization import no_init_weights
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from ensemble.spec import Tracker
from ensemble.tracker_interfaces import CONDITIONING_MAPS, MEMORY_WIDTH, RECENT_MAPS, RECENT_POINTERS

MODEL, NECK = "tracker_model.", "tracker_neck."
"""Beginnings of the names of the tracker's weights in a video model."""
EXPECTED = {
    "memory_attention_num_attention_heads": 1,
    "memory_attention_downsample_rate": 1,
    "memory_encoder_output_channels": MEMORY_WIDTH,
    "num_maskmem": RECENT_MAPS + 1,
    "max_cond_frame_num": CONDITIONING_MAPS,
    "max_object_pointers_in_encoder": RECENT_POINTERS + 1,
    "multimask_output_in_sam": True,
    "multimask_output_for_tracking": True,
    "multimask_min_pt_num": 0,
    "enable_temporal_pos_encoding_for_object_pointers": True,
    "enable_occlusion_spatial_embedding": True,
    "mask_downsampler_total_stride": 16,
}
"""Numbers of the configuration that are the same in every SAM3, and that the sub-models are written for."""


@dataclass(frozen=True)
class LoadedTracker:
    """`model` has no image transformer of its own; `neck` makes its features from the detector's. In fp32 and eval
    mode, at the resolution that the model's configuration names."""

    model: Sam3TrackerVideoModel
    neck: Sam3VisionNeck

    def state(self) -> dict[str, torch.Tensor]:
        """All weights under the names that they have in a video model."""
        return {
            **{MODEL + name: tensor for name, tensor in self.model.state_dict().items()},
            **{NECK + name: tensor for name, tensor in self.neck.state_dict().items()},
        }

    @property
    def record(self) -> Tracker:
        """The sizes from which `ensemble/tracker_interfaces.py` derives shapes."""
        return Tracker(self.neck.config.backbone_config.hidden_size, self.model.hidden_dim)

    def at_size(self, resolution: int) -> LoadedTracker:
        """The tracker at another resolution (pixels a side), which shares all weights."""
        config = copy.deepcopy(self.model.config)
        config.image_size = resolution
        sized = empty_model(config)
        sized.load_state_dict(self.model.state_dict(), assign=True)
        return LoadedTracker(sized.eval(), self.neck)


def empty_model(config: Sam3TrackerVideoConfig) -> Sam3TrackerVideoModel:
    """The model of a configuration, in fp32, whose weights have yet to be set."""
    with no_init_weights():
        return Sam3TrackerVideoModel._from_config(config, dtype=torch.float32, remove_vision_encoder=True)


def empty_tracker(config: Sam3TrackerVideoConfig, vision: Sam3VisionConfig) -> LoadedTracker:
    """A tracker whose weights have yet to be set, beside a detector with this configuration of its vision encoder."""
    return LoadedTracker(empty_model(config).eval(), Sam3VisionNeck(vision).float().eval())


def misfits(config: Sam3TrackerVideoConfig, vision: Sam3VisionConfig) -> list[str]:
    """Everything about a tracker's configuration that no model can have, or that is not SAM3's."""
    faults = [
        f"the tracker's {name} is {getattr(config, name)}, expected {value}"
        for name, value in EXPECTED.items()
        if getattr(config, name) != value
    ]
    widths = {
        vision.fpn_hidden_size,
        config.vision_config.fpn_hidden_size,
        config.memory_attention_hidden_size,
        config.memory_encoder_hidden_size,
        config.mask_downsampler_embed_dim,
        config.memory_fuser_embed_dim,
        config.prompt_encoder_config.hidden_size,
        config.mask_decoder_config.hidden_size,
    }
    if len(widths) > 1 or max(widths) % MEMORY_WIDTH:
        faults.append(f"the tracker's parts are {sorted(widths)} wide, expected one multiple of {MEMORY_WIDTH}")
    return faults
