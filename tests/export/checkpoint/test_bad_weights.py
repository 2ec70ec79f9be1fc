"""Whole files whose weights, configuration or pictures are not those of a SAM3 that can be served: each is refused with
a sentence that names and counts what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from export.checkpoint import CheckpointError, load
from tests.export.checkpoint.meta_files import meta_state
from tests.export.checkpoint.refusals import MODEL, refusal, table, with_torch

TEXT = "text_encoder.text_model.encoder.layers.1.mlp.fc1.weight"
LAYER = "vision_encoder.backbone.layers.0.layer_norm1.weight"
NAN, INFINITE = float("nan"), float("inf")


def with_state(change):
    """The small checkpoint's weights, changed in place or replaced."""

    def write(folder, state):
        state = {name: tensor.clone() for name, tensor in state.items()}
        changed = change(state)
        save_file(changed if isinstance(changed, dict) else state, folder / MODEL)

    return write


def with_config(**changes):
    """Whole weights, and a configuration with other numbers; `a__b` is b inside of a."""

    def write(folder, state):
        config = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *outer, last = path.split("__")
            inner = config
            for part in outer:
                inner = inner[part]
            inner[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        save_file(state, folder / MODEL)

    return write


def with_file(name, text):
    def write(folder, state):
        save_file(state, folder / MODEL)
        (folder / name).write_text(text)

    return write


WEIGHTS = [
    ("one missing", with_state(lambda s: s.pop(TEXT)), [f"1 weights are missing: {TEXT}", "incomplete"]),
    (
        "no text encoder",
        with_state(lambda s: {n: t for n, t in s.items() if not n.startswith("text_encoder")}),
        ["weights are missing: text_encoder.text_model", "and 3", "more"],
    ),
    (
        "renamed",
        with_state(lambda s: {n.replace("text_encoder", "text_tower"): t for n, t in s.items()}),
        ["are not known: text_tower", "are missing: text_encoder"],
    ),
    ("one too many", with_state(lambda s: s.update(extra=torch.ones(2))), ["1 weights are not known: extra"]),
    (
        "another shape",
        with_state(lambda s: s.update({TEXT: torch.ones(64, 64)})),
        [f"1 weights have another shape: {TEXT} 64x64 where the configuration says 128x64", "config.json"],
    ),
    ("whole numbers", with_state(lambda s: s.update({TEXT: s[TEXT].to(torch.int8)})), ["dtype", TEXT, "torch.int8"]),
    (
        "eight bits",
        with_state(lambda s: s.update({TEXT: s[TEXT].to(torch.float8_e4m3fn)})),
        ["1 weights have a dtype that holds no weights", "float8"],
    ),
    ("complex", with_state(lambda s: s.update({TEXT: s[TEXT].to(torch.complex64)})), ["holds no weights", "complex64"]),
    ("NaN", with_state(lambda s: s[LAYER].index_fill_(0, torch.tensor([3]), NAN)), ["NaN or infinity", LAYER]),
    (
        "infinity",
        with_state(lambda s: s[TEXT].view(-1)[:1].fill_(INFINITE)),
        ["1 weights hold NaN or infinity"],
    ),
    ("never written", with_state(lambda s: s[TEXT].zero_()), ["1 weights are all zero", TEXT]),
    (
        "sparse",
        with_torch(lambda s: {**s, TEXT: s[TEXT].to_sparse()}),
        ["1 weights are sparse or without values", TEXT],
    ),
    ("of no device", with_torch(lambda s: {**s, TEXT: s[TEXT].to("meta")}), ["sparse or without values", TEXT]),
    (
        "twice",
        with_torch(lambda s: {**s, f"module.{TEXT}": s[TEXT]}),
        [f"1 weights are there twice: module.{TEXT} and {TEXT}"],
    ),
    (
        "another model",
        with_torch({"encoder.weight": torch.ones(2, 2)}),
        ["found those of another model: encoder.weight"],
    ),
    (
        "SAM3-LiteText of its authors",
        with_torch({"detector.backbone.language_backbone.encoder.transformer.0.x": torch.ones(2)}),
        ["SAM3-LiteText in its authors' layout", "transformers version"],
    ),
]

CONFIGURATIONS = [
    ("of another model", with_config(model_type="clip"), ["expected a checkpoint of type sam3, sam3_video", "'clip'"]),
    ("without a model", with_config(model_type=None), ["expected config.json with a model_type"]),
    ("cut off", with_file("config.json", '{"model_type": '), ["expected JSON"]),
    ("a list", with_file("config.json", "[]"), ["expected a JSON object, got list"]),
    (
        "words for numbers",
        with_config(detr_decoder_config__num_queries="many"),
        ["transformers cannot read it", "num_q"],
    ),
    ("a million layers", with_config(detr_encoder_config__num_layers=10**6), ["are 1000000, expected at most 256"]),
    (
        "no queries",
        with_config(detr_decoder_config__num_queries=0),
        ["num_queries is 0, expected one number from 1 on"],
    ),
    (
        "two image sizes",
        with_config(vision_config__backbone_config__image_size=[112, 140]),
        ["image_size is [112, 140], expected one number"],
    ),
    (
        "size between two patches",
        with_config(vision_config__backbone_config__image_size=120),
        ["image_size 120 is no multiple of patch_size 14"],
    ),
    (
        "heads that do not divide",
        with_config(vision_config__backbone_config__num_attention_heads=5),
        ["trunk: width 64 does not divide into 5 heads of a multiple of 4"],
    ),
    (
        "global layers beyond the trunk",
        with_config(vision_config__backbone_config__global_attn_indexes=[1, 7]),
        ["global_attn_indexes [7] are beyond the trunk's 4 layers"],
    ),
    ("parts of two widths", with_config(vision_config__fpn_hidden_size=32), ["are [32, 64] wide, expected one width"]),
    ("another pyramid", with_config(vision_config__scale_factors=[2.0, 1.0, 0.5]), ["expected [4.0, 2.0, 1.0, 0.5]"]),
    (
        "another trunk",
        with_config(vision_config__backbone_config__model_type="vit"),
        ["the trunk is 'vit', expected 'sam3_vit_model'"],
    ),
    ("of another checkpoint", with_config(text_config__intermediate_size=96), ["6 weights have another shape"]),
    ("with more layers", with_config(detr_encoder_config__num_layers=3), ["are missing: detr_encoder.layers.2."]),
    ("with fewer layers", with_config(detr_encoder_config__num_layers=1), ["are not known: detr_encoder.layers.1."]),
    (
        "pictures prepared otherwise",
        with_file("processor_config.json", '{"image_processor": {"image_mean": [0.485, 0.456, 0.406]}}'),
        ["image_mean is [0.485, 0.456, 0.406], expected [0.5, 0.5, 0.5]"],
    ),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(("write", "words"), table(*WEIGHTS, *CONFIGURATIONS))
def test_refusals_say_what_is_wrong(bare_folder, state, write, words):
    refusal(bare_folder, state, write, words)


def test_averages_that_are_not_there(bare_folder, state):
    torch.save({"model": state, "ema": {"shadow_params": [*state.values()]}}, bare_folder / "last.pt")
    with pytest.raises(CheckpointError, match=r"expected averaged weights \(EMA\) with a name each.* found model"):
        load(str(bare_folder), ema=True)


def test_metas_file_of_another_size_without_a_configuration(bare_folder, state):
    """Numbers that weights do not tell are those of the released model, so this one needs its config.json."""
    torch.save(meta_state(state), bare_folder / "sam3.pt")
    (bare_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"have another shape: .* the config.json beside the weights"):
        load(str(bare_folder))
