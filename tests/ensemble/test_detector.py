"""A batch of parsed frames to answers: frames that cannot be read, and batches for which there is no memory."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ensemble import splitting
from ensemble.detector import Detector
from ensemble.limits import is_out_of_memory
from ensemble.pipeline import Job, Pipeline
from ensemble.preprocess.cpu import CpuPreprocessor, joined
from ensemble.request import FrameRequest, RequestError
from tests.ensemble.stand_ins import VARIANT, WORDS, SubModels, job


@pytest.fixture
def sub_models():
    return SubModels()


@pytest.fixture
def released():
    return []


@pytest.fixture
def detector(sub_models, released):
    with ThreadPoolExecutor(2) as pool:
        preprocess = CpuPreprocessor(28, pool)
        yield Detector(Pipeline(VARIANT, sub_models), preprocess, lambda: released.append(1))


def run(detector, batch):
    return detector.detect(batch, detector.read(batch))


def counts(answers):
    """How much was found in each frame, or the error's kind."""
    return [type(a).__name__ if isinstance(a, Exception) else len(a.scores) for a in answers]


def short_of_memory(sub_models, part, fits):
    """From now on that sub-model has room for calls of whose first axis `fits` is true."""
    usual = getattr(sub_models, part)

    def limited(model, **inputs):
        if not fits(len(inputs["image_index"] if "image_index" in inputs else inputs["pixel_values"])):
            raise RuntimeError("CUDA error: out of memory")
        return usual(model, **inputs)

    setattr(sub_models, part, limited)


def test_a_frame_that_cannot_be_read_gets_its_own_answer(detector):
    broken = Job(FrameRequest(("bbb",), image=b"junk"), [WORDS("bbb")])
    batch = [job(1, ("bbb",)), broken, RequestError("classes: none"), job(3, ("aa",))]
    answers = run(detector, batch)
    assert counts(answers) == [2, "RequestError", "RequestError", 1]
    assert "expected a JPEG, PNG, WEBP file" in str(answers[1])
    assert str(answers[2]) == "classes: none"


def test_nothing_that_can_be_read(detector, sub_models):
    batch = [Job(FrameRequest(("bbb",), image=b"junk"), [WORDS("bbb")])]
    assert counts(run(detector, batch)) == ["RequestError"]
    assert sub_models.calls == []


def test_what_a_sub_model_raises_is_the_answer_to_all(detector, sub_models, released):
    def failing(*_, **__):
        raise RuntimeError("no kernel")

    sub_models.decoder = failing
    batch = [job(1, ("bbb",)), RequestError("classes: none"), job(3, ("bbb",))]
    assert counts(run(detector, batch)) == ["RuntimeError", "RequestError", "RuntimeError"]
    assert released == []


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_batch_that_is_too_large_for_the_memory_is_halved(detector, sub_models, released, caplog, frames):
    short_of_memory(sub_models, "vision_encoder", lambda size: size <= frames)
    batch = [job(1, ("bbb",)), job(2, ("bbb",)), RequestError("none"), job(3, ("aa",)), job(1, ("aa",))]
    answers = run(detector, batch)
    assert counts(answers) == [2, 0, "RequestError", 1, 1]
    assert len(released) >= 1
    assert "memory ran out for 4 frames at once; calls now take at most 2" in caplog.messages[0]


@pytest.mark.parametrize(
    ("fits", "found"),
    [
        pytest.param(2, [2, 0, "RequestError", 1], id="in halves"),
        pytest.param(1, [2, 0, "RequestError", 1], id="one by one"),
        pytest.param(0, ["MemoryError"] * 4, id="none at all"),
    ],
)
def test_frames_are_read_in_halves_where_there_is_no_memory_for_all(detector, released, monkeypatch, fits, found):
    preprocess = detector._preprocess

    def limited(requests):
        if len(requests) > fits:
            raise RuntimeError("cudaErrorMemoryAllocation: out of memory")
        return preprocess(requests)

    monkeypatch.setattr(detector, "_preprocess", limited)
    broken = Job(FrameRequest(("bbb",), image=b"junk"), [WORDS("bbb")])
    answers = run(detector, [job(1, ("bbb",)), job(2, ("bbb",)), broken, job(3, ("aa",))])
    assert counts(answers) == found
    assert released
    if not fits:
        assert str(answers[0]).startswith("there is no memory to decode this frame; send it smaller")


def test_what_a_call_had_made_when_memory_ran_out_is_given_up_before_smaller_ones(detector, sub_models):
    """Features of four frames would else lie beside those of two."""
    short_of_memory(sub_models, "decoder", lambda size: size <= 1)
    usual, made, alive = sub_models.vision_encoder, [], []

    def count():
        alive.append(sum(features() is not None for features in made))

    def encoded(model, **inputs):
        count()
        outputs = usual(model, **inputs)
        made.extend(weakref.ref(features) for features in outputs.values())
        return outputs

    sub_models.vision_encoder = encoded
    own = Detector(detector.pipeline, detector._preprocess, count)
    batch = [job(1, ("bbb",)), job(2, ("bbb",)), job(3, ("aa",)), job(1, ("aa",))]
    assert counts(run(own, batch)) == [2, 0, 1, 1]
    assert len(alive) > 8, "some calls have failed"
    assert not any(alive)


def test_decoder_calls_become_smaller_where_one_frame_is_too_much(detector, sub_models, caplog):
    short_of_memory(sub_models, "decoder", lambda size: size <= 1)
    names = ("aa", "bbb", "cccc")
    assert counts(run(detector, [job(1, names)])) == [6]
    assert caplog.messages == ["memory ran out for one frame; decoder calls now take at most 1 of its classes"]
    assert counts(run(detector, [job(1, names), job(3, names)])) == [6, 6]
    assert len(caplog.messages) == 1, "it stays so"


def test_decoder_calls_become_larger_again_after_a_while(detector, sub_models, monkeypatch):
    monkeypatch.setattr(splitting, "PATIENCE", 3)
    short_of_memory(sub_models, "decoder", lambda size: size <= 1)
    frame = [job(1, ("aa", "bbb", "cccc"))]
    assert counts(run(detector, frame)) == [6]
    assert detector.pipeline.pairs.most == 1
    sizes = []
    for _ in range(7):
        assert counts(run(detector, frame)) == [6]
        sizes.append(detector.pipeline.pairs.most)
    assert sizes == [1, 2, 1, 1, 2, 1, 1], "after three good calls larger ones are tried again"


def test_calls_of_fewer_frames_are_remembered_and_grow_again(detector, sub_models, monkeypatch, caplog):
    monkeypatch.setattr(splitting, "PATIENCE", 4)
    short_of_memory(sub_models, "vision_encoder", lambda size: size <= 2)
    batch = [job(1, ("bbb",)), job(2, ("bbb",)), job(3, ("aa",)), job(1, ("aa",))]
    assert counts(run(detector, batch)) == [2, 0, 1, 1]
    tried = []
    for _ in range(3):
        sub_models.calls.clear()
        assert counts(run(detector, batch)) == [2, 0, 1, 1]
        shapes = [shapes["pixel_values"][0] for part, shapes, _ in sub_models.calls if part == "vision_encoder"]
        tried.append(shapes)
    assert tried == [[2, 2], [4, 2, 2], [2, 2]], "four is tried again after four good calls"
    assert [line for line in caplog.messages if "at once" in line] == [
        "memory ran out for 4 frames at once; calls now take at most 2"
    ] * 2


def test_a_batch_of_errors_alone_asks_for_nothing(detector, sub_models):
    errors = [RequestError("none"), RequestError("nor here")]
    assert detector.detect(errors, np.zeros((0, 3, 28, 28), np.uint8)) == errors
    assert sub_models.calls == []


def test_no_memory_for_a_single_frame(detector, sub_models):
    short_of_memory(sub_models, "vision_encoder", lambda size: False)
    answers = run(detector, [job(1, ("bbb",)), job(2, ("bbb",))])
    assert counts(answers) == ["MemoryError", "MemoryError"]
    assert str(answers[0]) == "there is no memory for one frame at 28; serve a lower resolution"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        pytest.param(MemoryError(), True, id="Python's"),
        pytest.param(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True, id="PyTorch's"),
        pytest.param(RuntimeError("cudaErrorMemoryAllocation: out of memory"), True, id="CuPy's"),
        pytest.param(RuntimeError("device-side assert triggered"), False, id="another"),
    ],
)
def test_errors_that_mean_a_lack_of_memory(error, memory):
    assert is_out_of_memory(error) == memory


def test_batches_are_joined_in_order():
    one, two = np.zeros((1, 3, 2, 2), np.uint8), np.ones((2, 3, 2, 2), np.uint8)
    assert joined([one]) is one, "not copied"
    assert joined([one, two])[:, 0, 0, 0].tolist() == [0, 1, 1]
