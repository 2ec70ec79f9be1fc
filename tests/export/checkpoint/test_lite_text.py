"""SAM3-LiteText: another text encoder before the same four sub-models, which are exported once for both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Sam3LiteTextModel

from ensemble.spec import Variant
from export.checkpoint import at_size, load
from export.engines.onnx import export_onnx
from export.engines.onnxruntime import onnx_session
from export.engines.registry import ready
from export.engines.tensorrt.settings import TensorRT
from export.manifest import recipe
from export.sub_models.parts import PARTS, Style, make_part

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


def test_beside_sam3_only_the_text_encoder_is_out_of_date(lite, source):
    """With the weights of SAM3 in the other four sub-models, as the published ones have."""
    model = at_size(lite.model, 112, 20)
    shared = {name: tensor for name, tensor in source.model.state_dict().items() if not name.startswith("text_")}
    model.load_state_dict(shared, strict=False)
    both = replace(lite, model=model)
    variant, tool = Variant(112, 20, "fp32", checkpoint=source.record), ready("onnxruntime", TensorRT())
    other = replace(variant, checkpoint=both.record)
    stale = {part for part in PARTS if recipe(both, other, part, tool) != recipe(source, variant, part, tool)}
    assert stale == {"text_encoder"}


def test_the_artifact_computes_the_same(lite, tmp_path, error):
    variant = Variant(112, 20, "fp32", checkpoint=lite.record)
    module = make_part("text_encoder", lite.model, Style("explicit", "plain"), "fp32")
    export_onnx(module, variant.text_encoder, tmp_path / "model.onnx")
    ids = np.array([lite.tokenizer.encode(words).ids for words in PROMPTS], np.int32)
    found = onnx_session(tmp_path / "model.onnx")({"input_ids": ids})["text_features"]
    assert error(torch.from_numpy(found), module(torch.from_numpy(ids))) < EXACT
