"""The tracker's records: what fits together, and that a variant without a tracker is as it was."""

from dataclasses import replace

import pytest

from ensemble.spec import Checkpoint, Tracker, Variant

SMALL = Checkpoint("small", image_size=252, hidden_size=128, num_queries=50)
VIDEO = Variant(210, 50, "fp32", checkpoint=SMALL, tracker=Tracker(trunk_size=192, hidden_size=128))


def test_a_variant_without_a_tracker_is_as_it_was():
    pictures = replace(VIDEO, tracker=None)
    assert pictures.tracker_parts == ()
    assert [t.name for t in pictures.vision_encoder.outputs] == ["fpn_0", "fpn_1", "fpn_2"]
    assert "tracker" not in pictures.to_dict()
    with pytest.raises(ValueError, match=r"sam3_r210 has no tracker: expected a repository .*--video"):
        _ = pictures.tracker_step


def test_the_vision_encoder_of_a_video_has_one_output_more_and_nothing_else_changes():
    pictures = replace(VIDEO, tracker=None)
    (hidden,) = VIDEO.vision_encoder.outputs[3:]
    assert (hidden.name, hidden.shape(images=2), hidden.host) == ("hidden", (2, 225, 192), False)
    assert replace(VIDEO.vision_encoder, outputs=VIDEO.vision_encoder.outputs[:3]) == pictures.vision_encoder
    assert VIDEO.sub_models[1:] == pictures.sub_models[1:]


def test_names_and_order_of_the_trackers_parts():
    assert {model.part: model.name for model in VIDEO.tracker_parts} == {
        "tracker_neck": "sam3_tracker_neck_r210",
        "tracker_step": "sam3_tracker_step_r210",
        "memory_encoder": "sam3_memory_encoder_r210",
        "tracker_seed": "sam3_tracker_seed_r210",
    }


def test_outputs_of_one_part_are_inputs_of_the_next_with_the_same_shape_and_dtype():
    made = {t.name: t for m in (VIDEO.vision_encoder, *VIDEO.tracker_parts) for t in m.outputs}
    passed_on = {(m.part, t.name): t for m in VIDEO.tracker_parts for t in m.inputs if t.name in made}
    assert {name for part, name in passed_on if part == "tracker_step"} == {"track_0", "track_1", "track_x", "memory"}
    assert {name for part, name in passed_on if part == "memory_encoder"} == {"track_2", "mask_logits"}
    for (part, name), tensor in passed_on.items():
        if (part, name) in (("tracker_step", "memory"), ("tracker_seed", "mask_bits")):
            continue  # many maps of one each; and given masks, not those of a step
        assert (tensor.dtype, tensor.dims, tensor.host) == (made[name].dtype, made[name].dims, False)


def test_masks_travel_packed_by_rows_of_whole_bytes():
    assert VIDEO.tracker_step.output("mask_bits").shape(objects=3) == (3, 60, 8)
    assert VIDEO.memory_encoder.input("keep").shape(objects=3) == (3, 60, 8)


def test_plain_data_round_trip():
    assert Variant.from_dict(VIDEO.to_dict()) == VIDEO


def test_a_call_of_no_objects_is_refused():
    with pytest.raises(ValueError, match="max_objects must be at least 1, got 0"):
        Variant(tracker=Tracker(max_objects=0))
