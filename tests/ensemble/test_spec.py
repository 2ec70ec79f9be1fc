"""The specification: derived sizes and names, and what it refuses."""

import json

import pytest

from ensemble.records import Axis
from ensemble.spec import RESOLUTIONS, Checkpoint, Layers, Variant, check_resolution, is_front_name

SMALL = Checkpoint("small", image_size=252, hidden_size=128, num_queries=50)


@pytest.mark.parametrize(
    ("resolution", "patches", "mask_size", "row_bytes"),
    [(1008, 72, 288, 36), (840, 60, 240, 30), (672, 48, 192, 24), (560, 40, 160, 20), (210, 15, 60, 8), (14, 1, 4, 1)],
)
def test_sizes_follow_the_resolution(resolution, patches, mask_size, row_bytes):
    variant = Variant(resolution=resolution)
    assert (variant.patches, variant.mask_size, variant.mask_row_bytes) == (patches, mask_size, row_bytes)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("vision_encoder", "sam3_vision_encoder_r672"),
        ("text_encoder", "sam3_text_encoder"),
        ("geometry_encoder", "sam3_geometry_encoder_r672"),
        ("decoder", "sam3_decoder_r672_q50"),
        ("mask_head", "sam3_mask_head_r672_q50"),
    ],
)
def test_names(part, name):
    variant = Variant(resolution=672, queries=50)
    assert variant.model_name(part) == name
    assert {m.part: m.name for m in variant.sub_models}[part] == name
    assert variant.front.name == "sam3_r672"


def test_layers_are_told_where_they_are_not_those_of_sam3():
    small = Variant(checkpoint=Checkpoint("fewer blocks", layers=Layers(parameters=6e8, layers=24)))
    assert Variant.from_dict(json.loads(json.dumps(small.to_dict()))) == small
    assert "layers" not in Variant().to_dict()["checkpoint"]
    assert Variant.from_dict(Variant().to_dict()) == Variant()


def test_precision_is_part_of_the_name_only_below_sixteen_bits():
    assert Variant(resolution=672, precision="int8").model_name("decoder") == "sam3_decoder_r672_q200_int8"
    assert Variant(precision="fp32").front_name == Variant(precision="fp16").front_name == "sam3_r1008"


def test_outputs_of_one_sub_model_are_inputs_of_the_next_with_the_same_shape_and_dtype():
    variant = Variant(resolution=252, queries=50, precision="fp32", checkpoint=SMALL)
    made = {t.name: t for m in (variant.vision_encoder, variant.decoder) for t in m.outputs}
    passed_on = [t for m in variant.sub_models for t in m.inputs if t.name in made]
    assert {t.name for t in passed_on} == {"fpn_0", "fpn_1", "fpn_2", "query_features", "memory"}
    for tensor in passed_on:
        assert (tensor.dtype, tensor.dims, tensor.host) == (made[tensor.name].dtype, made[tensor.name].dims, False)


def test_batch_dimension_is_tritons_only_where_it_leads_every_tensor():
    variant = Variant(max_batch=4, max_pairs=16)
    assert {m.part: m.max_batch_size for m in (*variant.sub_models, variant.front)} == {
        "vision_encoder": 4,
        "text_encoder": 16,
        "geometry_encoder": 0,
        "decoder": 0,
        "mask_head": 0,
        "front": 4,
    }


def test_shape_takes_sizes_by_axis_name():
    tensor = Variant(resolution=1008).decoder.input("prompt_features")
    assert tensor.shape(pairs=5, tokens=41) == (5, 41, 256)
    assert tensor.axes[0] == Axis("pairs", 1, 32, 32)


def test_plain_data_round_trip():
    variant = Variant(resolution=252, queries=50, precision="fp32", checkpoint=SMALL, max_batch=3)
    assert Variant.from_dict(variant.to_dict()) == variant


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"resolution": 1000}, r"multiple of 14, got 1000; nearest: 994, 1008"),
        ({"resolution": 0}, r"multiple of 14, got 0; nearest: 14"),
        ({"resolution": -14}, r"multiple of 14, got -14"),
        ({"queries": 300}, r"queries must be 1 to 200 .*got 300"),
        ({"precision": "fp64"}, r"precision must be one of fp32, fp16, int8, int8_fp16, fp8, got 'fp64'"),
        ({"max_pairs": 0}, r"max_pairs must be at least 1, got 0"),
    ],
)
def test_refusals_name_what_would_work(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Variant(**fields)


def test_unknown_tensor_names_those_there_are():
    with pytest.raises(KeyError, match="no tensor 'masks'; it has fpn_0"):
        Variant().mask_head.input("masks")


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_published_resolutions_are_valid(resolution):
    check_resolution(resolution)


@pytest.mark.parametrize(
    ("name", "front"),
    [
        ("sam3_r1008", True),
        ("sam3_r252_int8", True),
        ("sam3_decoder_r252_q50", False),
        ("sam3_r", False),
        ("sam3_rx", False),
        ("sam3_r252_q50", False),
    ],
)
def test_front_names(name, front):
    assert is_front_name(name) == front
