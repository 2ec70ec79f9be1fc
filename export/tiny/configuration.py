"""The small checkpoint's configuration, in which every spatial number is a quarter of the original's, and a model with
fresh weights.

Classes and code path are transformers' own, so what exports or serves this checkpoint exports and serves the original.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

from ensemble.spec import check_resolution

RESOLUTIONS = (252, 210, 168, 140)  # stand for 1008, 840, 672, 560
PATCH = 14
QUERIES = 50  # stand for 200
QUERY_GRID = (10, 5)


def tiny_config(vocab_size: int, bos_token_id: int, eos_token_id: int, image_size: int = RESOLUTIONS[0]) -> Sam3Config:
    """The configuration: about 9 million parameters. Raises ValueError where `image_size` is no multiple of the
    patch."""
    check_resolution(image_size, PATCH)
    side = RESOLUTIONS[0] // PATCH
    width = dict(hidden_size=128, num_attention_heads=4)
    detr = dict(**width, intermediate_size=512, dropout=0.0)  # every image is new, there is nothing to overfit
    return Sam3Config(
        vision_config=dict(
            fpn_hidden_size=128,
            backbone_feature_sizes=[[4 * side] * 2, [2 * side] * 2, [side] * 2],
            backbone_config=dict(
                model_type="sam3_vit_model",
                hidden_size=192,
                intermediate_size=768,
                num_hidden_layers=8,
                num_attention_heads=6,
                image_size=image_size,
                patch_size=PATCH,
                window_size=6,
                global_attn_indexes=[3, 7],
                pretrain_image_size=84,
            ),
        ),
        text_config=dict(
            model_type="clip_text_model",
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            hidden_act="gelu",
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
        ),
        geometry_encoder_config=dict(**detr, num_layers=1),
        detr_encoder_config=dict(**detr, num_layers=3),
        detr_decoder_config=dict(**detr, num_layers=4, num_queries=QUERIES),
        mask_decoder_config=dict(**width),
    )


def build_model(tokenizer: CLIPTokenizer, seed: int = 0) -> Sam3Model:
    """A model with weights that can be trained from scratch.

    transformers initialises weights to be overwritten by a checkpoint: with its standard deviation of 0.02 hardly
    anything passes from image and text to the queries, and every query starts at the same place. Here linear layers get
    Xavier weights, convolutions Kaiming weights, and queries a grid of reference boxes.
    """
    torch.manual_seed(seed)
    config = tiny_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    model = Sam3Model._from_config(config, attn_implementation="sdpa")
    starts_small = ("mask_embedder", "box_rpb_embed")  # products and biases that should begin near zero
    decoder = model.detr_decoder
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and not any(part in name for part in starts_small):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        columns, rows = QUERY_GRID
        centres = [((k % columns + 0.5) / columns, (k // columns + 0.5) / rows) for k in range(QUERIES)]
        decoder.reference_points.weight.copy_(torch.logit(torch.tensor([[x, y, 0.2, 0.2] for x, y in centres])))
        decoder.query_embed.weight.normal_(0, 1)
        model.dot_product_scoring.query_proj.weight.mul_(0.1)  # or the first scores saturate
        decoder.box_head.layer3.weight.zero_()
        decoder.box_head.layer3.bias.zero_()
        model.text_encoder.text_model.embeddings.token_embedding.weight.normal_(0, 0.5)
        model.geometry_encoder.label_embed.weight.normal_(0, 0.5)
        model.geometry_encoder.cls_embed.weight.normal_(0, 0.5)
    return model


@torch.no_grad()
def normalise_pyramid(model: Sam3Model, pixel_values: torch.Tensor) -> list[float]:
    """Scales each FPN level so that its standard deviation is 1 on `pixel_values` [B, 3, R, R]; returns what it was.

    The DETR encoder normalises before each layer: if its input is much larger than 1, what the text adds to it has no
    effect. Without this step training stays at the majority class.
    """
    levels = model.vision_encoder(pixel_values).fpn_hidden_states
    deviations = [float(level.float().std()) for level in levels]
    for layer, deviation in zip(model.vision_encoder.neck.fpn_layers, deviations, strict=True):
        layer.proj2.weight.div_(deviation)
    return deviations


def set_resolution(model: Sam3Model, resolution: int) -> None:
    """Changes the model, in place, to take `resolution` x `resolution` pixels. Raises ValueError where that is no
    multiple of the patch.

    Only the rotary positions of the global layers depend on it; they become what `from_pretrained` makes when
    `config.image_size` is set first.
    """
    check_resolution(resolution, PATCH)
    backbone = model.vision_encoder.backbone
    model.config.image_size = resolution
    backbone.config.image_size = resolution
    for layer in backbone.layers:
        if layer.window_size == 0:
            positions = layer.precompute_positions(backbone.config, 0)
            layer.position_ids = nn.Buffer(positions.to(layer.position_ids.device), persistent=False)


def save_checkpoint(model: Sam3Model, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes configuration, weights (fp16 on disk, loaded as fp32), tokenizer and processor in Hugging Face format."""
    folder.mkdir(parents=True, exist_ok=True)
    set_resolution(model, RESOLUTIONS[0])
    weights = {name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["Sam3Model"]
    model.config.save_pretrained(folder)
    name_float32(folder / "config.json")
    size = {"height": RESOLUTIONS[0], "width": RESOLUTIONS[0]}
    side = RESOLUTIONS[0] // PATCH * 4
    images = Sam3ImageProcessor(size=size, mask_size={"height": side, "width": side})
    Sam3Processor(images, tokenizer, target_size=RESOLUTIONS[0]).save_pretrained(folder)


def name_float32(path: Path) -> None:
    """Names fp32 as the dtype of a configuration's file and of each of its parts."""
    # transformers loads in the dtype that config.json names, and these weights are fp16 on disk only.
    config = json.loads(path.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part or part is config:
            part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
