"""The small tracker's configuration, and a `Sam3VideoModel` that holds the small checkpoint's detector beside it.

Classes and code path are transformers' own, as for the small checkpoint: what serves the original serves this one. The
widths are half the original's, but for the memory's 64 channels, which transformers fixes.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Sam3Config, Sam3Model, Sam3TrackerVideoConfig, Sam3VideoConfig, Sam3VideoModel

from ensemble.spec import check_resolution
from export.tiny import CHECKPOINT
from export.tiny.configuration import PATCH, RESOLUTIONS

WIDTH = 128
FFN = 512
WEIGHTS_FILE = "tracker.safetensors"
PARTS = ("tracker_model.", "tracker_neck.")
SPREAD = 0.5
"""Standard deviation of fresh embeddings: transformers' own 0.02 is lost beside features of deviation 1."""

OWN_PLACE = 1.0  # about 7 in the attention's logits between a memory token at the query's place and distant ones


def tracker_config(detector: Sam3Config, resolution: int = RESOLUTIONS[0]) -> Sam3TrackerVideoConfig:
    """The tracker's configuration at a resolution, 2.7 million parameters with its neck. Raises ValueError where
    `resolution` is no multiple of the patch."""
    check_resolution(resolution, PATCH)
    side = resolution // PATCH
    vision = detector.vision_config.to_dict()
    vision["backbone_config"]["image_size"] = resolution
    vision["backbone_feature_sizes"] = [[4 * side] * 2, [2 * side] * 2, [side] * 2]
    return Sam3TrackerVideoConfig(
        vision_config=vision,
        prompt_encoder_config=dict(hidden_size=WIDTH, image_size=resolution, patch_size=PATCH),
        mask_decoder_config=dict(hidden_size=WIDTH, mlp_dim=FFN, iou_head_hidden_dim=WIDTH, num_attention_heads=4),
        image_size=resolution,
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=FFN,
        memory_attention_rope_feat_sizes=[side, side],
        memory_attention_dropout=0.0,  # every clip is new, there is nothing to overfit
        memory_attention_rope_dropout=0.0,
        memory_encoder_hidden_size=WIDTH,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=FFN,
        memory_fuser_layer_scale_init_value=0.1,  # the original's 1e-6 needs a longer training
    )


def video_config(detector: Sam3Config, resolution: int = RESOLUTIONS[0]) -> Sam3VideoConfig:
    """Detector and tracker at one resolution. Raises ValueError where it is no multiple of the patch."""
    seen = detector.to_dict() | {"_name_or_path": ""}  # the folder that it was read from is nobody's business
    tracker = tracker_config(detector, resolution).to_dict()
    config = Sam3VideoConfig(detector_config=seen, tracker_config=tracker, low_res_mask_size=4 * resolution // PATCH)
    config.image_size = resolution
    return config


def random_video_model(
    checkpoint: Path = CHECKPOINT, resolution: int = RESOLUTIONS[0], seed: int = 0
) -> Sam3VideoModel:
    """A model with the small checkpoint's detector (fp32) and a tracker with fresh weights that can be trained.

    The tracker's neck begins as the detector's; all other linear layers get Xavier weights, convolutions Kaiming ones,
    and everything that transformers leaves at zero is random, so that a term that is left out somewhere shows.
    """
    detector = Sam3Model.from_pretrained(checkpoint, dtype=torch.float32)
    torch.manual_seed(seed)
    config = video_config(detector.config, resolution)
    model = Sam3VideoModel._from_config(config, attn_implementation="sdpa").float().eval()
    model.detector_model.load_state_dict(detector.state_dict())
    model.tracker_neck.load_state_dict(detector.vision_encoder.neck.state_dict())
    _initialise(model)
    return model


def tracker_weights(model: Sam3VideoModel) -> dict[str, Tensor]:
    """The tracker's own part of a model's weights, fp16, under their names in `Sam3VideoModel`."""
    return {
        name: value.detach().half().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name.startswith(PARTS)
    }


def load_tracker_weights(model: Sam3VideoModel, tracker: Path) -> None:
    """Gives a model the tracker of a training's folder or weights' file, or of a whole checkpoint. Raises ValueError
    where weights are missing or are another tracker's."""
    file = tracker / WEIGHTS_FILE if (tracker / WEIGHTS_FILE).is_file() else tracker / "model.safetensors"
    file = file if tracker.is_dir() else tracker
    weights = {name: value for name, value in load_file(file).items() if name.startswith(PARTS)}
    missing = [name for name in model.state_dict() if name.startswith(PARTS) and name not in weights]
    strange = model.load_state_dict(weights, strict=False).unexpected_keys
    if missing or strange:
        raise ValueError(
            f"{file}: expected the small tracker's weights; {len(missing)} are missing and {len(strange)} not known,"
            f" such as {(missing + strange)[0]}; train it again"
        )


@torch.no_grad()
def _initialise(model: Sam3VideoModel) -> None:
    tracker = model.tracker_model
    for module in tracker.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, SPREAD)
    for zero in (
        tracker.no_memory_embedding,
        tracker.no_memory_positional_encoding,
        tracker.memory_temporal_positional_encoding,
        tracker.no_object_pointer,
        tracker.occlusion_spatial_embedding_parameter,
    ):
        zero.normal_(0, SPREAD)
    # Masks cover few pixels: with equal shares, a tenth of what is remembered would tell one object from another, and
    # training would stay where every mask covers all objects.
    encoder = tracker.memory_encoder
    encoder.feature_projection.weight.mul_(0.3)
    encoder.mask_downsampler.final_conv.weight.mul_(5)
    encoder.projection.weight.mul_(0.3)
    for layer in tracker.memory_attention.layers:
        # Rotary positions turn what queries and keys have in common into a preference for their own place, so that the
        # first thing to be learned, a mask that stays where it was, is there from the start.
        attention = layer.cross_attn_image
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.mul_(0.5)
            projection.bias.fill_(OWN_PLACE)
        attention.o_proj.weight.mul_(2)
    # One table of spatial frequencies in two places, as in the original.
    embedding = tracker.prompt_encoder.shared_embedding.positional_embedding
    tracker.shared_image_embedding.positional_embedding.copy_(embedding)
