"""The engine model on the real server: whoever calls it with nonsense gets an error, frames of others go on, and it
gives the answers that its sub-models give as models of their own."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from clients.connection import AsyncClient, Client
from ensemble.handover import pack_jobs
from ensemble.pipeline import Job
from ensemble.request import Exemplars, FrameRequest
from ensemble.server.embedded import EmbeddedServer
from perf.sweep import inputs
from tests.ensemble.drawn import CLASSES, FRAME
from tests.ensemble.real_server import infer, stubs

pytestmark = pytest.mark.server

SIDE, LENGTH = 140, 32
FRONT = "sam3_r140"
BOX = Exemplars(np.array([[0.5, 0.5, 0.2, 0.2]], np.float32), np.array([1], np.int32))


def batch(frames=1, names=1, **changes):
    """What a front model would hand over; `changes` replaces some of its arrays."""
    ids = np.arange(LENGTH, dtype=np.int32) + 3
    tokens = [(ids, np.ones(LENGTH, np.int32))] * names
    request = FrameRequest((), frame=np.zeros((SIDE, SIDE, 3), np.uint8), exemplars={0: BOX}, mask_format="bits")
    return pack_jobs(FRONT, [Job(request, tokens, (SIDE, SIDE))] * frames, SIDE) | changes


def ids(value):
    return np.full((1, LENGTH), value, np.int32)


NONSENSE = {
    "another front model": ({"front": np.array([b"sam3_r1008"], object)}, "front: expected one of sam3_r"),
    "bytes that are no name": ({"front": np.array([b"\xff\xfe\x00"], object)}, "front: expected one of"),
    "no frame": (
        {"file_bytes": np.zeros(0, np.int32), "frame_sizes": np.zeros((0, 2), np.int32)},
        "sam3_engine: expected 1 to 8 frames, got 0",
    ),
    "a thousand frames": ({"file_bytes": np.ones(1000, np.int32)}, "sam3_engine: expected 1 to 8 frames, got 1000"),
    "names that are not there": ({"names_per_frame": np.array([50], np.int32)}, "expected input_ids (50, 32)"),
    "a token beyond the vocabulary": ({"input_ids": ids(1 << 30)}, "expected input_ids of 0 to"),
    "a negative token": ({"input_ids": ids(-1)}, "expected input_ids of 0 to"),
    "a mask of anything": ({"token_mask": ids(77)}, "expected token_mask of 0 and 1"),
    "bytes that are not there": ({"file_bytes": np.array([1 << 30], np.int32)}, "expected the bytes of all files"),
    "scaled to another side": ({"scaled": np.zeros((1, 28, 28, 3), np.uint8)}, "expected scaled frames"),
    "a label that is none": ({"box_labels": np.array([99], np.int32)}, "expected box_labels of 0 and 1"),
    "a box at infinity": ({"boxes": np.full((1, 4), np.inf, np.float32)}, "expected boxes of 0 to 1"),
    "a box of nobody": ({"box_names": np.array([1 << 20], np.int32)}, "expected box_names of 0 to 0"),
    "another dtype": ({"threshold": np.array([1], np.int32)}, "threshold"),
    "another rank": ({"input_ids": np.zeros((1, 1, LENGTH), np.int32)}, "input_ids"),
    "two names of front models": ({"front": np.array([b"a", b"b"], object)}, "front"),
}


@pytest.fixture(scope="module")
def others(server):
    """A camera that goes on sending while this module's nonsense comes in; what it got, and its first answer."""
    ended, answers = threading.Event(), []

    def send():
        with Client(server.grpc_url, model="sam3_r252", timeout=300) as client:
            while not ended.is_set():
                answers.append(client.detect(FRAME, CLASSES))

    thread = threading.Thread(target=send)
    thread.start()
    yield answers
    ended.set()
    thread.join()
    assert len(answers) > 1
    for answer in answers:
        assert answer.labels == answers[0].labels
        np.testing.assert_allclose(answer.boxes, answers[0].boxes, atol=1e-4)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(("changes", "sentence"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_gets_an_error(server, others, protocol, changes, sentence):
    before = stubs(server, "sam3_engine")
    with pytest.raises(InferenceServerException) as caught:
        infer(server, protocol, batch(**changes), "sam3_engine")
    assert sentence in caught.value.message()
    assert len(caught.value.message()) < 500
    assert stubs(server, "sam3_engine") == before, "the same process goes on"
    assert infer(server, protocol, batch(), "sam3_engine").as_numpy("status").tolist() == [0]


def test_inputs_that_are_missing(server, others):
    arrays = batch()
    for name in arrays:
        with pytest.raises(InferenceServerException, match=name):
            infer(server, "grpc", {n: a for n, a in arrays.items() if n != name}, "sam3_engine")
    assert infer(server, "grpc", arrays, "sam3_engine").as_numpy("status").tolist() == [0]


def test_a_file_that_is_no_picture_is_that_frames_alone(server, others):
    junk = np.frombuffer(b"hello there", np.uint8)
    changes = {"files": junk, "file_bytes": np.array([len(junk), 0], np.int32)}
    arrays = batch(frames=2) | changes | {"scaled": np.zeros((1, SIDE, SIDE, 3), np.uint8)}
    answered = infer(server, "grpc", arrays, "sam3_engine")
    assert answered.as_numpy("status").tolist() == [1, 0]
    assert b"expected a JPEG, PNG, WEBP file" in answered.as_numpy("messages")[0]


def test_the_largest_batch_there_can_be(server, others):
    """Eight frames with a hundred names each are 800 pairs: chunks, not an error."""
    answered = infer(server, "grpc", batch(frames=8, names=100), "sam3_engine")
    assert answered.as_numpy("status").tolist() == [0] * 8
    assert answered.as_numpy("presence").shape == (800,)


# ---- the same answers
async def ask(url, requests):
    async with AsyncClient(url, model=FRONT, timeout=300) as client:
        return await asyncio.gather(*(client.detect(*positional, **options) for positional, options in requests))


def test_sub_models_of_their_own_give_the_same_answers_from_several_front_models(repository):
    """Batches of one frame: others in a batch may turn the last bit, and all instances of the front model have work."""
    shown = inputs.pictures(4)
    formats = ("bits", "none")
    requests = [((frame.jpeg, list(frame.names)), {"mask_format": form}) for frame in shown for form in formats]
    requests += [((FRAME, ["object"]), {"boxes": [[0.1, 0.1, 0.5, 0.6]], "mask_format": "bits", "threshold": 0.05})]
    front = {"max_batch": 1, "front_instances": 2}
    found = []
    for sub_models in (False, True):
        with EmbeddedServer(repository, resolutions=[140], front=front, sub_models=sub_models) as running:
            assert bool(stubs(running, "sam3_engine")) != sub_models
            assert bool(stubs(running, "sam3_vision_encoder_r140")) == sub_models
            assert len(stubs(running, FRONT)) == 2
            running.probe()
            once, again = (asyncio.run(ask(running.grpc_url, requests)) for _ in range(2))
            found.append(once)
            assert [len(answer) for answer in again] == [len(answer) for answer in once], "nobody gets another's answer"
    assert all(len(answer) > 0 for answer in found[0])
    for engine, apart in zip(*found, strict=True):
        assert engine.labels == apart.labels
        np.testing.assert_allclose(engine.boxes, apart.boxes, atol=1e-5)
        np.testing.assert_allclose(engine.scores, apart.scores, atol=1e-5)
        np.testing.assert_allclose(engine.presence, apart.presence, atol=1e-5)
        np.testing.assert_array_equal(engine.mask_bits, apart.mask_bits)
        assert engine.frame_size == apart.frame_size


def test_one_process_has_the_sub_models_of_all_resolutions(server):
    (pid,) = stubs(server, "sam3_engine")
    assert pid not in (*stubs(server, "sam3_r252"), *stubs(server, FRONT))
