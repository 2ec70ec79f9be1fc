"""Batches of videos for which there is no memory: whatever runs out, and wherever, the tracks are the same."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ensemble import splitting
from ensemble.detector import Detector
from ensemble.preprocess.cpu import CpuPreprocessor, to_pixel_values
from ensemble.video.detector import VideoDetector
from tests.ensemble.video.test_pipeline import FILMS, alone, same

FRAMES = 3


@pytest.fixture(scope="module")
def expected(flow, film):
    """The answers to each film, by itself and with enough memory."""
    return {number: alone(flow, film, number, FRAMES) for number in FILMS}


@pytest.fixture
def served(flow):
    """A server's flow, and its detector, which answers a batch."""
    own = flow()
    with ThreadPoolExecutor(2) as pool:
        preprocess = CpuPreprocessor(own.pipeline.variant.detector.resolution, pool)
        yield own, VideoDetector(Detector(own.pipeline.pipeline, preprocess), own.pipeline)


def answer(detector, jobs):
    batch = list(jobs)
    return detector.detect(batch, detector.read(batch))


def failing(own, fails):
    """From now on memory runs out in calls of which `fails(part, inputs)` is true."""
    pipeline, usual = own.pipeline.pipeline, own.pipeline.pipeline._call

    def limited(model, inputs, outputs):
        if fails(model.part, inputs):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return usual(model, inputs, outputs)

    pipeline._call = limited


def size(inputs):
    """Frames, objects or pairs of a call."""
    return len(inputs["image_index"] if "image_index" in inputs else inputs["pixel_values"])


def most_of(own, detector):
    """Frames, objects and pairs that calls take at most."""
    return tuple(limit.most for limit in (detector._splitter._frames, *own.pipeline.limits))


@pytest.mark.parametrize(
    ("part", "room", "most"),
    [
        pytest.param("vision_encoder", 2, (1, 8, 32), id="frames"),
        pytest.param("tracker_step", 1, (1, 1, 32), id="objects that are carried on"),
        pytest.param("tracker_seed", 1, (1, 1, 32), id="objects that begin"),
        pytest.param("memory_encoder", 1, (1, 1, 32), id="objects that are remembered"),
        pytest.param("decoder", 1, (1, 1, 1), id="pairs"),
    ],
)
def test_smaller_calls_find_the_same_tracks(served, film, expected, part, room, most):
    own, detector = served
    failing(own, lambda called, inputs: called == part and size(inputs) > room)
    for index in range(FRAMES):
        answers = answer(detector, [own.job(film(number), index, 100 + number) for number in FILMS])
        for number, found in zip(FILMS, answers, strict=True):
            same(found, expected[number][index])
            assert found.frame_index == index
    assert most_of(own, detector) == most
    assert not own.pipeline.sessions.over, "no session was begun twice"


def test_a_frame_that_fails_between_two_writes_is_computed_again_from_the_same_memory(flow, film, served, monkeypatch):
    """Every frame of two videos fails once when half of its objects are remembered. Then each is computed by itself, as
    when nothing fails: nothing differs in a single bit."""
    monkeypatch.setattr(splitting, "PATIENCE", 1)  # the next batch has both again
    own, detector = served
    calls = []
    failing(own, lambda part, _: part == "memory_encoder" and len(calls.append(part) or calls) == 2)
    plain = {number: flow() for number in (3, 4)}
    for each in (own, *plain.values()):
        each.pipeline._objects.most = each.pipeline._objects.largest = 1
    for index in range(8):
        calls.clear()
        answers = answer(detector, [own.job(film(number), index, number) for number in plain])
        assert len(calls) > 2, "it has failed"
        for (number, other), found in zip(plain.items(), answers, strict=True):
            (wanted,) = other.answer([other.job(film(number), index, number)])
            for name in ("track_ids", "scores", "track_scores", "mask_bits", "hidden_ids"):
                np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), f"{name} in frame {index}")


def test_calls_take_more_again_after_a_while(served, film, monkeypatch):
    """First what became less last."""
    monkeypatch.setattr(splitting, "PATIENCE", 2)
    own, detector = served
    short = [True]
    failing(own, lambda part, inputs: bool(short) and part == "decoder" and size(inputs) > 1)
    own.pipeline.pipeline.pairs.largest = own.pipeline.pipeline.pairs.most = 4
    seen = []
    for index in range(6):
        answer(detector, [own.job(film(number), index, number) for number in (0, 3)])
        seen.append(most_of(own, detector))
        short.clear()
    assert seen == [(1, 1, 2), (1, 1, 4), (1, 2, 4), (1, 4, 4), (1, 8, 4), (2, 8, 4)]


def test_a_frame_that_never_fits_fails_alone(served, film, expected):
    own, detector = served
    answer(detector, [own.job(film(number), 0, number) for number in FILMS])
    side = own.pipeline.variant.detector.resolution
    large = to_pixel_values(Image.fromarray(film(3).frames[1]), side)
    known = [known.object_id for known in own.pipeline.sessions.find(3).follower.objects]
    failing(own, lambda _, inputs: any((frame == large).all() for frame in inputs.get("pixel_values", ())))
    for index in (1, 2):
        answers = dict(zip(FILMS, answer(detector, [own.job(film(n), index, n) for n in FILMS]), strict=True))
        failed = answers.pop(3)
        for number, found in answers.items():
            same(found, expected[number][index])
        if index == 1:
            assert isinstance(failed, MemoryError)
            assert str(failed).startswith(f"session: expected memory for one frame at {side} and its {len(known)} obj")
            assert "--tracker-resolution" in str(failed)
    assert {*failed.track_ids.tolist(), *failed.hidden_ids.tolist()} >= set(known)
    assert failed.frame_index == 2


def test_a_batch_begins_with_as_many_frames_as_a_call_takes(served, film):
    """So that the next batch's features can be under way while this one's answers are sent."""
    own, detector = served
    detector._splitter._frames.most = 2
    calls = []
    failing(own, lambda part, inputs: calls.append((part, len(inputs.get("pixel_values", ())))))
    batch = [own.job(film(number), 0, number) for number in FILMS]
    begun = detector.begin(batch, detector.read(batch))
    assert [call for call in calls if call[0] != "text_encoder"] == [("vision_encoder", 2)]
    assert [len(found.track_ids) > 0 for found in detector.complete(begun)] == [True] * 3
    assert [frames for part, frames in calls if part == "vision_encoder"] == [2, 1]


def test_what_is_refused_is_refused_once(served, film):
    own, detector = served
    failing(own, lambda part, inputs: part == "vision_encoder" and size(inputs) > 1)
    first = own.job(film(0), 0, 1)
    first.asked = replace(first.asked, max_objects=own.pipeline.sessions.slots - 1)
    found, refused = answer(detector, [first, own.job(film(3), 0, 2)])
    assert not isinstance(found, Exception)
    assert "has room for 1 objects" in str(refused)
    assert own.pipeline.sessions.over == {"refused": 1}
