"""A front model's side of the engine model, with a stand-in for that model: who gets which answer, whatever fails."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ensemble import engine_client, triton_io
from ensemble.engine_client import EngineClient
from ensemble.handover import EngineError, pack_answers, unpack_jobs
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.request import FrameRequest, RequestError
from tests.ensemble.fake_triton import HostTensor, InferenceRequest, InferenceResponse, TritonError
from tests.ensemble.stand_ins import VARIANT, WORDS


def encoded(value, kind, size=(30, 20)):
    stream = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(stream, kind)
    return stream.getvalue()


def job(image=None, frame=None, mask_format="none"):
    request = FrameRequest(classes=("bbb",), image=image, frame=frame, mask_format=mask_format)
    return Job(request, [WORDS("bbb")])


def raw(value, height=20, width=30):
    return job(frame=np.full((height, width, 3), value, np.uint8))


class EngineModel:
    """Finds in every scaled frame one thing, whose score is the frame's grey value; in every file one of score 1000."""

    def __init__(self):
        self.batches = []

    def __call__(self, request):
        assert request.model_name == "sam3_engine"
        jobs = unpack_jobs({tensor.name(): tensor.as_numpy() for tensor in request.inputs()}, VARIANT)
        self.batches.append(jobs)
        packed = pack_answers(jobs, [self.answer(job) for job in jobs], np.zeros((0, 8, 1), np.uint8))
        return InferenceResponse([HostTensor(name, packed[name]) for name in request.wanted])

    def answer(self, job):
        value = 1000 if job.request.frame is None else job.request.frame[0, 0, 0]
        masks = np.full((int(job.request.mask_format != "none"), 8, 1), 170, np.uint8)
        one = np.ones((1, 4), np.float32)
        return Detections(one, np.array([value], np.float32), np.zeros(1, np.int32), one[0, :1], masks)


@pytest.fixture
def model(monkeypatch):
    made = EngineModel()
    monkeypatch.setattr(InferenceRequest, "answer", staticmethod(made), raising=False)
    return made


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def client(pool):
    return EngineClient("sam3_r28", VARIANT, pool, "cpu")


def found(answers):
    """Score of each answer, or the error's kind."""
    return [type(a).__name__ if isinstance(a, Exception) else a.scores.tolist()[0] for a in answers]


def test_each_frame_gets_its_own_answer(client, model):
    batch = [raw(7), job(encoded(9, "PNG")), RequestError("classes: none"), job(b"junk"), raw(8, 5, 6)]
    answers = client.detect(batch)
    assert found(answers) == [7, 9, "RequestError", "RequestError", 8]
    assert str(answers[2]) == "classes: none"
    assert "expected a JPEG, PNG, WEBP file" in str(answers[3])
    assert [len(jobs) for jobs in model.batches] == [3], "what is wrong already goes nowhere"
    assert [batch[i].frame_size for i in (0, 1, 4)] == [(20, 30), (20, 30), (5, 6)]
    assert all(batch[i].stage_ms["decode"] > 0 for i in (0, 1, 4))


def test_nothing_to_ask(client, model):
    assert found(client.detect([RequestError("a"), job(b"junk")])) == ["RequestError", "RequestError"]
    assert model.batches == []


@pytest.mark.parametrize(
    ("decoding", "files"),
    [
        pytest.param("cpu", [], id="no GPU: all frames are scaled here"),
        pytest.param("auto", [0, 3], id="plain JPEG files go over as they are"),
        pytest.param("gpu", [0, 3], id="the same where a GPU must"),
    ],
)
def test_where_frames_are_decoded(pool, model, decoding, files):
    jpeg = encoded(50, "JPEG")
    batch = [job(jpeg), job(encoded(60, "PNG")), raw(70), job(jpeg + b"\0")]
    EngineClient("sam3_r28", VARIANT, pool, decoding).detect(batch)
    (jobs,) = model.batches
    assert [i for i, sent in enumerate(jobs) if sent.request.image is not None] == files
    assert [i for i, sent in enumerate(jobs) if sent.request.frame is None] == files
    assert [sent.frame_size for sent in jobs] == [(20, 30)] * 4


def test_masks_come_as_bits_whatever_the_caller_asked_for(client, model):
    """The front model packs them; the engine model knows only whether there are any."""
    batch = [job(encoded(1, "PNG"), mask_format=form) for form in ("rle", "none", "bits")]
    assert [len(answer.mask_bits) for answer in client.detect(batch)] == [1, 0, 1]
    assert [item.request.mask_format for item in batch] == ["rle", "none", "bits"]


def test_an_engine_model_that_fails_is_told_to_its_frames_alone(client, model, monkeypatch):
    def failed(request):
        return InferenceResponse(error=TritonError("the stub process is not healthy"))

    monkeypatch.setattr(InferenceRequest, "answer", staticmethod(failed))
    answers = client.detect([raw(7), RequestError("classes: none"), raw(8)])
    assert found(answers) == ["CallError", "RequestError", "CallError"]
    assert str(answers[0]) == "sam3_engine: the stub process is not healthy"
    monkeypatch.setattr(InferenceRequest, "answer", staticmethod(model))
    assert found(client.detect([raw(7)])) == [7]


def test_a_frame_that_fails_in_the_engine_model(client, model, monkeypatch):
    good = model.answer
    failing = MemoryError("no room")
    monkeypatch.setattr(model, "answer", lambda job: failing if job.request.frame[0, 0, 0] == 7 else good(job))
    answers = client.detect([raw(7), raw(8)])
    assert found(answers) == ["EngineError", 8]
    assert isinstance(answers[0], EngineError)
    assert str(answers[0]) == "MemoryError: no room"


def test_an_engine_model_of_another_version(client, monkeypatch):
    """Answers that do not fit the batch are an error for its frames, not the end of the front model."""

    def short(request):
        return InferenceResponse([HostTensor(name, np.zeros(1, np.int32)) for name in request.wanted])

    monkeypatch.setattr(InferenceRequest, "answer", staticmethod(short), raising=False)
    answers = client.detect([raw(7), raw(8)])
    assert len(answers) == 2
    assert all(isinstance(answer, Exception) for answer in answers)


def test_an_engine_model_that_hangs(client, model, monkeypatch):
    """The batch's callers are told, and the next batch does not wait behind it."""
    hangs = threading.Event()

    def stuck(request):
        hangs.wait()
        return model(request)

    monkeypatch.setattr(InferenceRequest, "answer", staticmethod(stuck))
    monkeypatch.setattr(engine_client, "TIMEOUT_S", 0.05)
    try:
        answers = client.detect([raw(7), RequestError("classes: none")])
        assert found(answers) == ["CallError", "RequestError"]
        assert isinstance(answers[0], triton_io.CallError)
        assert "sam3_engine has not answered for" in str(answers[0])
        assert "starts a server again that hangs" in str(answers[0])
        monkeypatch.setattr(InferenceRequest, "answer", staticmethod(model))
        monkeypatch.setattr(engine_client, "TIMEOUT_S", 60.0)
        assert found(client.detect([raw(8)])) == [8]
    finally:
        hangs.set()
