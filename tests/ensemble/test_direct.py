"""The engine model that clients call themselves, outside Triton, with stand-ins for its sub-models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ensemble import callers, direct
from ensemble.callers import Callers
from ensemble.metrics import FrontMetrics
from tests.ensemble.engine_model import ENGINES
from tests.ensemble.fake_triton import HostTensor, InferenceRequest, MetricFamily, TritonError
from tests.ensemble.stand_ins import VARIANT, WORDS
from tests.ensemble.waiting import until


@pytest.fixture
def model(sub_models, tmp_path, monkeypatch):
    """Started as Triton does; ended after the test."""
    monkeypatch.setattr(
        Callers, "of", lambda variant, args: Callers(variant, WORDS, FrontMetrics("sam3_r28", "sam3_r28_0_0", 4))
    )
    fronts = {VARIANT.front_name: {"variant": VARIANT.to_dict(), "engines": ENGINES}}
    told = {"fronts": json.dumps(fronts), "preprocess": "cpu"}
    made = direct.TritonPythonModel()
    made.initialize(
        {
            "model_name": VARIANT.front_name,
            "model_config": json.dumps({"parameters": {k: {"string_value": v} for k, v in told.items()}}),
            "model_repository": str(tmp_path),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    yield made
    if made._sending.is_alive():
        made.finalize()


def request(image=1, name="bbb", **changes):
    """One caller's; its frame's pixels all have the value `image`."""
    arrays = {
        "frame": np.full((1, 28, 28, 3), image, np.uint8),
        "classes": np.array([[name.encode()]], object),
        "mask_format": np.array([[b"bits"]], object),
    } | changes
    return InferenceRequest(inputs=[HostTensor(n, array) for n, array in arrays.items()])


def outputs(asked):
    (response,) = asked.sent
    return {name: tensor.as_numpy()[0] for name, tensor in response.tensors.items()}


def test_each_caller_gets_one_answer_of_its_own(model):
    asked = [request(1), request(2), request(3, "aa")]
    assert model.execute(asked) is None, "it answers later"
    model.finalize()
    assert [outputs(one)["class_ids"].tolist() for one in asked] == [[0, 0], [], [0]]
    first = outputs(asked[0])
    assert list(first) == [tensor.name for tensor in VARIANT.front.outputs]
    assert len(first["mask_bits"]) == 2
    assert 1 <= first["batch"][0] <= 3


def test_a_bad_request_gets_its_error_at_once(model, held):
    good, bad = request(1), request(threshold=np.array([[7.0]], np.float32))
    model.execute([good, bad])
    (refused,) = bad.sent
    assert refused.error().message().startswith("threshold: expected 0 to 1")
    assert refused.error().code == TritonError.INVALID_ARG
    assert good.sent == []
    held.set()
    model.finalize()
    assert len(outputs(good)["scores"]) == 2


def test_what_fails_is_told_to_its_callers_and_serving_goes_on(model, sub_models, caplog):
    decode = sub_models.decoder

    def failing(*_, **__):
        raise RuntimeError("no kernel")

    sub_models.decoder = failing
    lost, found = request(1), request(1)
    model.execute([lost])
    until(lambda: lost.sent, *model._threads, model._sending)
    sub_models.decoder = decode
    model.execute([found])
    model.finalize()
    (error,) = lost.sent
    assert (error.error().message(), error.error().code) == ("RuntimeError: no kernel", TritonError.INTERNAL)
    assert len(outputs(found)["scores"]) == 2


def test_pixels_that_cannot_be_read_at_all(model, monkeypatch):
    """The pre-processor itself fails: its callers are told, and counted among the failed."""
    failed = ("sam3_frames_total", "sam3_r28", "failed")
    before = MetricFamily.told.get(failed, 0)

    def failing(requests):
        raise RuntimeError("no room for pixels")

    monkeypatch.setattr(model._front.detector, "_preprocess", failing)
    lost = [request(), request()]
    model.execute(lost)
    model.finalize()
    assert [one.sent[0].error().message() for one in lost] == ["RuntimeError: no room for pixels"] * 2
    until(lambda: MetricFamily.told.get(failed, 0) - before == 2)


def test_an_answer_that_cannot_be_packed(model, monkeypatch):
    """Its caller is told, and it is counted among the failed."""

    def broken(masks, size):
        raise ValueError("no run lengths")

    failed = ("sam3_frames_total", "sam3_r28", "failed")
    before = MetricFamily.told.get(failed, 0)
    monkeypatch.setattr(callers, "to_rle", broken)
    bad, good = request(mask_format=np.array([[b"rle"]], object)), request()
    model.execute([bad, good])
    model.finalize()
    assert bad.sent[0].error().message() == "ValueError: no run lengths"
    assert len(outputs(good)["scores"]) == 2
    until(lambda: MetricFamily.told.get(failed, 0) - before == 1)


def test_a_frame_is_its_callers_until_execute_returns(model, held):
    """Triton takes the memory back then."""
    asked = request(1)
    model.execute([asked])
    asked.inputs()[0].as_numpy()[:] = 2
    held.set()
    model.finalize()
    assert len(outputs(asked)["scores"]) == 2
