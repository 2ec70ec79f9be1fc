"""What a front model makes of the answers of its engine, outside Triton: masks as they were asked for, errors by whose
fault they are."""

import time
import types
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ensemble.callers import Callers
from ensemble.ending import Ending
from ensemble.front import TritonPythonModel
from ensemble.handover import EngineError
from ensemble.metrics import FrontMetrics
from ensemble.postprocess import Detections, unpack
from ensemble.request import RequestError
from ensemble.spec import STAGES
from tests.ensemble.fake_triton import HostTensor, InferenceRequest, MetricFamily, TritonError
from tests.ensemble.stand_ins import VARIANT, WORDS
from tests.ensemble.waiting import until

BITS = np.array([[[255], [1], [2], [3], [4], [5], [6], [7]], [[0], [0], [60], [60], [60], [0], [0], [0]]], np.uint8)


def detections(count):
    boxes = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    return Detections(boxes, boxes[:, 0], np.zeros(count, np.int32), np.ones(1, np.float32), BITS[:count])


@pytest.fixture
def model(request):
    """A front model whose engine gives the answers that a test puts there; it is called as the test in its metrics,
    which come a moment after the answers."""
    made = TritonPythonModel()
    made.callers = Callers(VARIANT, WORDS, FrontMetrics(request.node.name, "0", VARIANT.max_batch))
    made.answers = []

    def detect(batch):
        for item in batch:
            item.frame_size = (4, 6)
        return made.answers

    made.engine = types.SimpleNamespace(detect=detect)
    return made


def asked(mask_format="none", **changes):
    arrays = {
        "frame": np.zeros((1, 4, 6, 3), np.uint8),
        "classes": np.array([[b"bbb"]], object),
        "mask_format": np.array([[mask_format.encode()]], object),
    } | changes
    return InferenceRequest(inputs=[HostTensor(name, array) for name, array in arrays.items()])


def outputs(response):
    return {name: tensor.as_numpy() for name, tensor in response.tensors.items()}


def test_rle_instead_of_bits(model):
    model.answers = [detections(2)]
    (response,) = model.execute([asked("rle")])
    found = outputs(response)
    assert found["mask_bits"].shape == (1, 0, 8, 1)
    assert found["mask_rle"].shape == (1, 2)
    decoded = coco_mask.decode([{"size": [8, 8], "counts": counts} for counts in found["mask_rle"][0]])
    np.testing.assert_array_equal(decoded.transpose(2, 0, 1).astype(bool), unpack(BITS, 8))


def test_a_server_that_is_ending_refuses_frames(model, request, tmp_path):
    """As a server that is away, which clients try elsewhere, and counted apart from failures."""
    ending = Ending(tmp_path)
    model.callers = replace(model.callers, ending=ending)
    model.engine.detect = lambda batch: batch  # an exception is its own answer
    ending.begin()
    (response,) = model.execute([asked()])
    assert response.error().code == TritonError.UNAVAILABLE
    assert response.error().message().startswith("this server is ending and takes no more frames")
    until(lambda: MetricFamily.told.get(("sam3_frames_total", request.node.name, "refused")) == 1)


def test_bits_instead_of_rle(model):
    model.answers = [detections(2)]
    (response,) = model.execute([asked("bits")])
    np.testing.assert_array_equal(outputs(response)["mask_bits"], BITS[None])
    assert outputs(response)["mask_rle"].shape == (1, 0)


def test_every_output_of_the_interface_is_answered(model):
    model.answers = [detections(1)]
    (response,) = model.execute([asked("bits")])
    found = outputs(response)
    assert list(found) == [tensor.name for tensor in VARIANT.front.outputs]
    assert all(array.shape[0] == 1 for array in found.values())
    assert found["stage_ms"].shape == (1, len(STAGES))
    assert found["batch"].tolist() == [[1]]


def test_errors_say_whose_they_are(model, request):
    model.answers = [RequestError("image: no picture"), EngineError("MemoryError: no room"), detections(1)]
    first, second, third = model.execute([asked(), asked(), asked()])
    assert (first.error().message(), first.error().code) == ("image: no picture", TritonError.INVALID_ARG)
    assert (second.error().message(), second.error().code) == (
        "EngineError: MemoryError: no room",
        TritonError.INTERNAL,
    )
    assert not third.has_error()
    keys = [("sam3_frames_total", request.node.name, outcome) for outcome in ("ok", "rejected", "failed")]
    until(lambda: [MetricFamily.told.get(key, 0) for key in keys] == [1, 1, 1])


def test_what_cannot_be_parsed_is_handed_on_as_its_own_answer(model):
    seen = []

    def detect(batch):
        seen.extend(batch)
        return [batch[0], RequestError("image: no picture")]

    model.engine = types.SimpleNamespace(detect=detect)
    bad, other = model.execute([asked(threshold=np.array([[7.0]], np.float32)), asked()])
    assert "threshold: expected 0 to 1" in bad.error().message()
    assert other.error().message() == "image: no picture"
    assert isinstance(seen[0], RequestError)
    assert [ids.tolist() for ids, _ in seen[1].tokens] == [[3, 0, 0, 0, 0]]


def test_the_age_of_the_oldest_frame(model, request):
    """Of those that were taken and not answered yet."""
    gauge, metrics = ("sam3_oldest_frame_seconds", request.node.name, "0"), model.callers.metrics
    metrics.taken(10.0, 2)
    metrics.taken(12.0, 1)
    until(lambda: metrics.oldest_s(15.0) == 5.0)
    metrics.frame("ok", 10.0)
    metrics.frame("ok", 12.0)
    metrics.frame("failed", 10.0)
    until(lambda: metrics.oldest_s(15.0) == 0.0)
    held = time.perf_counter() - 1000.0
    metrics.taken(held, 1)
    until(lambda: MetricFamily.told.get(gauge, 0) >= 1000.0)
    metrics.frame("failed", held)
    until(lambda: MetricFamily.told[gauge] == 0.0)


def test_no_frame_stays_behind(model):
    """Answered, refused or failed: what was taken has gone when `execute` returns."""
    model.answers = [RequestError("image: no picture"), EngineError("no room"), detections(1)]
    model.execute([asked(), asked(), asked()])
    until(lambda: model.callers.metrics.oldest_s(time.perf_counter()) == 0.0)
