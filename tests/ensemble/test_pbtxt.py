"""Every configuration against Triton's own protobuf schema, and the committed repository against the generated text."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ensemble import pbtxt
from ensemble.records import Axis
from ensemble.spec import ENGINES, RESOLUTIONS, Checkpoint, Variant

COMMITTED = Path(__file__).parents[2] / "model_repository"
VARIANTS = [
    *(Variant(resolution=r) for r in RESOLUTIONS),
    Variant(resolution=210, queries=25, precision="fp32", checkpoint=Checkpoint("small", 252, 14, 128, 50)),
]


def parsed(text):
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.front_name)
def test_configurations_are_what_triton_reads(variant, engine):
    for model in (*variant.sub_models, variant.front):
        config = parsed(pbtxt.render(model, variant, engine))
        assert config.name == model.name
        assert config.max_batch_size == model.max_batch_size
        for kind, tensors in (("input", model.inputs), ("output", model.outputs)):
            assert [t.name for t in getattr(config, kind)] == [t.name for t in tensors]
            for told, tensor in zip(getattr(config, kind), tensors, strict=True):
                dims = [-1 if isinstance(d, Axis) else d for d in tensor.dims]
                assert list(told.dims) == (dims[1:] if model.batch_axis else dims)
                dtype = model_config_pb2.DataType.Name(told.data_type).removeprefix("TYPE_")
                assert dtype == ("STRING" if tensor.dtype == "BYTES" else tensor.dtype)


def test_front_model_batches_frames_of_any_size():
    config = parsed(pbtxt.render(Variant(queue_delay_us=700).front, Variant(queue_delay_us=700), "tensorrt"))
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    assert all(t.allow_ragged_batch and t.optional for t in config.input)


def test_front_model_carries_its_variant():
    import json

    variant = VARIANTS[-1]
    config = parsed(pbtxt.render(variant.front, variant, "onnxruntime"))
    assert Variant.from_dict(json.loads(config.parameters["variant"].string_value)) == variant


@pytest.mark.parametrize(("engine", "preprocess"), [("onnxruntime", "cpu"), ("tensorrt", "auto"), ("aoti", "auto")])
def test_frames_are_prepared_where_the_vision_encoder_reads_them(engine, preprocess):
    config = parsed(pbtxt.render(VARIANTS[0].front, VARIANTS[0], engine))
    assert config.parameters["preprocess"].string_value == preprocess


def test_committed_repository_is_the_generated_one(tmp_path):
    assert pbtxt.main(["--repository", str(tmp_path)]) == 0
    generated = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*.*") if p.is_file()}
    committed = {
        p.relative_to(COMMITTED): p.read_text() for p in COMMITTED.rglob("*") if p.name in ("config.pbtxt", "model.py")
    }
    assert committed == generated


def test_unknown_engine_is_refused():
    with pytest.raises(
        ValueError, match="engine must be one of tensorrt, tensorrt_rtx, onnxruntime, aoti, got 'openvino'"
    ):
        pbtxt.render(VARIANTS[0].decoder, VARIANTS[0], "openvino")
