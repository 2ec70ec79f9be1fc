"""A loaded checkpoint: other sizes around the same weights, the tokenizer file, and the records."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Sam3Config, Sam3Model

from ensemble.spec import Checkpoint, Layers, Variant
from export.checkpoint import Source, at_size, load
from export.engines.onnx import sample_inputs

LONG = "a very long prompt " * 20


def test_record_is_read_from_the_configuration(source):
    assert source.record == Checkpoint(
        source.name,
        image_size=112,
        patch_size=14,
        hidden_size=64,
        num_queries=20,
        context_length=32,
        vocabulary_size=source.model.config.text_config.vocab_size,
        layers=Layers(1e6, 64, 4, 2, 4, 160, 4, 2, 2, 4, 128, 64, 2, 128),
    )
    assert source.record.vocabulary_size == source.tokenizer.get_vocab_size() < 49408
    assert source.name.endswith("/small")


def test_another_size_equals_loading_with_its_image_size(folder, source, error):
    config = Sam3Config.from_pretrained(folder)
    config.image_size = 140
    loaded = Sam3Model.from_pretrained(folder, config=config).eval()
    pixels = torch.randn(1, 3, 140, 140)
    mine, wanted = (m.get_vision_features(pixels).last_hidden_state for m in (at_size(source.model, 140, 20), loaded))
    assert error(mine, wanted) == 0


def test_another_size_shares_weights_and_changes_nothing(source):
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    small = at_size(source.model, 140, 7)
    assert small.config.detr_decoder_config.num_queries == 7
    assert source.model.config.image_size == 112
    assert source.model.config.detr_decoder_config.num_queries == 20
    assert torch.equal(small.detr_decoder.query_embed.weight, source.model.detr_decoder.query_embed.weight[:7])
    weight = "detr_encoder.layers.0.mlp.fc1.weight"
    assert small.get_parameter(weight).data_ptr() == source.model.get_parameter(weight).data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.model.state_dict().items())


def test_fingerprint_follows_the_weights(source, folder):
    assert load(str(folder)).sha256 == source.sha256
    other = at_size(source.model, 112, 20)
    other.detr_decoder.query_embed.weight = torch.nn.Parameter(other.detr_decoder.query_embed.weight + 1e-3)
    assert Source(source.name, other, source.tokenizer).sha256 != source.sha256


def test_tokenizer_file_needs_only_the_tokenizers_library(source, folder, tmp_path):
    path = tmp_path / "tokenizer.json"
    source.tokenizer.save(str(path))
    alone, theirs = Tokenizer.from_file(str(path)), AutoTokenizer.from_pretrained(folder)
    for text in ("red circle", "A Dog", "", "café 猫"):
        encoded, wanted = alone.encode(text), theirs(text, padding="max_length", max_length=32)
        assert encoded.ids == wanted["input_ids"]
        assert encoded.attention_mask == wanted["attention_mask"]
    assert len(alone.encode(LONG).ids) > 32  # never cut off: whoever asks can refuse it


def test_tracing_inputs_have_no_sizes_that_look_constant():
    variant = Variant(112, 20, "fp32", max_batch=1, max_pairs=1, checkpoint=Checkpoint("small", 112, 14, 64, 20))
    for model in variant.sub_models:
        samples = sample_inputs(model)
        sizes = {axis.name: samples[t.name].shape[i] for t in model.inputs for i, axis in t.axes.items()}
        assert min(sizes.values()) >= 2
        assert len(set(sizes.values())) == len(sizes)
