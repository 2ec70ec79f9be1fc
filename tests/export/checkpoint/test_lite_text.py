"""SAM3-LiteText: another text encoder before the same four sub-models, which are exported once for both."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Sam3LiteTextModel

from export.checkpoint import at_size, load
from export.gate.frames import drawn_frames
from export.sub_models.parts import PARTS, Style, make_part
from export.variant import Job, export_variant

EXACT = 2e-6
PROMPTS = ("red circle", "the thing on the left", "ring", "a very long name of a thing that has many words", "")


@pytest.fixture(scope="module")
def lite(lite_folder):
    return load(str(lite_folder))


def test_every_weight_is_loaded_and_positions_have_the_tokenizers_length(lite, lite_folder):
    assert isinstance(lite.model, Sam3LiteTextModel)
    wanted = load_file(lite_folder / "model.safetensors")
    found = lite.model.state_dict()
    table = "text_encoder.embeddings.position_embedding.position_embedding"
    assert {n for n in wanted if not torch.equal(found[n], wanted[n])} == {table}
    assert lite.account.used == len(wanted) == len(found)
    assert lite.record.context_length == 32
    assert found[table].shape == (1, 1, 32, 64)


@pytest.mark.parametrize(
    ("form", "precision", "limit"), [("explicit", "fp32", EXACT), ("fused", "fp32", EXACT), ("explicit", "fp16", 5e-3)]
)
def test_features_are_those_of_transformers(lite, lite_folder, error, form, precision, limit):
    """Its own model stretches the positions on every call; the sub-model has batch norms and skips folded in."""
    theirs = Sam3LiteTextModel.from_pretrained(lite_folder).eval()
    tokens = AutoTokenizer.from_pretrained(lite_folder)(
        list(PROMPTS), padding="max_length", max_length=32, return_tensors="pt"
    )
    wanted = theirs.get_text_features(**tokens, return_dict=True).pooler_output
    real = tokens["attention_mask"].bool()
    module = make_part("text_encoder", lite.model, Style(form, "plain"), precision)
    found = module(tokens["input_ids"].int())
    assert found.dtype == {"fp32": torch.float32, "fp16": torch.float16}[precision]
    assert error(found[real].float(), wanted[real]) < limit


def test_an_export_beside_sam3_builds_the_text_encoder_alone(exported, lite, tmp_path, source):
    """With the weights of SAM3 in the other four sub-models, as the published ones have."""
    shared = {n: t for n, t in source.model.state_dict().items() if not n.startswith("text_")}
    model = at_size(lite.model, 112, 20)
    model.load_state_dict(shared, strict=False)
    both = replace(lite, model=model)
    assert {part for part in PARTS if both.part_sha256(part) != source.part_sha256(part)} == {"text_encoder"}
    export = exported(112)
    root = shutil.copytree(export.root, tmp_path / "repository")
    variant = replace(export.variant, checkpoint=both.record)
    written = export_variant(Job(both, variant, "onnxruntime", root, drawn_frames(2, 112)))
    assert [w.model for w in written if w.state == "built"] == ["sam3_text_encoder"]
