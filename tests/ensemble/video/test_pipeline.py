from dataclasses import replace

import numpy as np
import pytest

from ensemble.request import RequestError
from ensemble.video.variant import VideoVariant
from tests.clock import Clock

FILMS = (0, 3, 4)


def alone(flow, film, number, frames, **asked):
    """One film's answers, by itself."""
    own = flow()
    return [own.answer([own.job(film(number), index, 7, **asked)])[0] for index in range(frames)]


def same(one, other):
    """Whether two answers say the same; masks may differ in a pixel on the edge, since sums are in another order."""
    assert one.track_ids.tolist() == other.track_ids.tolist()
    assert one.class_ids.tolist() == other.class_ids.tolist()
    assert one.track_states.tolist() == other.track_states.tolist()
    assert one.hidden_ids.tolist() == other.hidden_ids.tolist()
    assert one.scores == pytest.approx(other.scores, abs=1e-3)
    differing = np.unpackbits(one.mask_bits ^ other.mask_bits).sum()
    assert differing <= 2 * len(one.track_ids)


def test_a_batch_of_sessions_is_each_session_alone(flow, film):
    together = flow()
    expected = {number: alone(flow, film, number, 5) for number in FILMS}
    rng = np.random.default_rng(0)
    for index in range(5):
        order = rng.permutation(FILMS).tolist()
        answers = together.answer([together.job(film(number), index, 100 + number) for number in order])
        for number, answer in zip(order, answers, strict=True):
            same(answer, expected[number][index])
            assert answer.frame_index == index


def test_objects_keep_their_ids_and_their_places(flow, film):
    answers = alone(flow, film, 3, 8, detect_every=4)
    first = set(answers[0].track_ids.tolist())
    assert len(first) >= 2
    for index, answer in enumerate(answers[1:], 1):
        assert first <= {*answer.track_ids.tolist(), *answer.hidden_ids.tolist()}, index
        for box in answer.boxes:
            assert (box[:2] < box[2:]).all()
            assert ((box >= 0) & (box <= 1)).all()


def test_the_detector_looks_when_it_is_due(flow, film):
    calls = []
    own = flow(calls.append)
    looked = []
    for index in range(6):
        calls.clear()
        own.answer([own.job(film(3), index, 1, detect_every=3)])
        looked.append("decoder" in calls)
    assert looked == [True, False, False, True, False, False]


def test_with_a_tracker_of_another_resolution_the_detector_gets_its_frames_alone(flow, film):
    own = flow().pipeline
    own.variant = VideoVariant(replace(own.variant.detector, resolution=168), own.variant.tracking)
    asked = {}

    def run(model, inputs, outputs):
        asked[model.name] = len(inputs["pixel_values"])
        return dict.fromkeys(outputs)

    own._run = run
    frames = np.zeros((3, 3, 168, 168), np.uint8)
    assert own._vision(frames, [2])[0] == [2]
    assert asked == {"sam3_vision_encoder_r140": 3, "sam3_vision_encoder_r168": 1}
    asked.clear()
    assert own._vision(frames, [])[0] == []
    assert asked == {"sam3_vision_encoder_r140": 3}


def test_sessions_of_one_batch_look_each_in_their_own_frames(flow, film):
    own = flow()
    for index in range(4):
        jobs = [own.job(film(0), index, 1, detect_every=2), own.job(film(3), index, 2, detect_every=1)]
        answers = own.answer(jobs)
    expected = alone(flow, film, 0, 4, detect_every=2)[-1], alone(flow, film, 3, 4)[-1]
    for answer, wanted in zip(answers, expected, strict=True):
        same(answer, wanted)


@pytest.mark.parametrize("part", ["vision_encoder", "tracker_step", "decoder", "tracker_seed", "memory_encoder"])
def test_a_frame_that_fails_leaves_its_session_as_it_was(flow, film, part):
    broken = []

    def before(name):
        if broken and name == part:
            raise RuntimeError("no luck")

    own = flow(before)
    own.answer([own.job(film(3), 0, 1)])
    known = own.pipeline.sessions.find(1)
    ids, taken = [o.object_id for o in known.follower.objects], dict(known.taken)
    broken.append(True)
    job = own.job(film(0), 0, 2), own.job(film(3), 1, 1)
    with pytest.raises(RuntimeError, match="no luck"):
        own.answer(job)
    assert ([o.object_id for o in known.follower.objects], known.taken) == (ids, taken)
    broken.clear()
    (answer,) = own.answer([own.job(film(3), 2, 1)])
    assert (set(ids) <= {*answer.track_ids.tolist(), *answer.hidden_ids.tolist()}, answer.frame_index) == (True, 2)


def test_a_frame_of_an_unknown_session_fails_alone(flow, film):
    own = flow()
    own.answer([own.job(film(3), 0, 1)])
    answers = own.answer([own.job(film(3), 1, 99), own.job(film(3), 1, 1)])
    assert isinstance(answers[0], RequestError)
    assert len(answers[1].track_ids)


def test_frames_that_take_minutes_end_no_session(flow, film):
    """Two videos in turn on a slow machine: while one is computed, the other's frame waits."""
    clock = Clock()

    def before(part):
        clock.now += 100.0 * (part == "vision_encoder")

    own = flow(before, clock)
    for index in range(3):
        for session in (1, 2):
            (answer,) = own.answer([own.job(film(3), index, session)])
            assert answer.frame_index == index


def test_a_session_that_ends_gives_its_slots_back(flow, film):
    own = flow()
    own.answer([own.job(film(3), 0, 1, end=True)])
    assert own.pipeline.sessions.used_slots == 0


def test_other_names_end_their_objects_and_keep_the_rest(flow, film):
    own, video = flow(), film(3)
    own.answer([own.job(video, 0, 1)])
    (before,) = own.answer([own.job(video, 1, 1)])
    job = own.job(video, 2, 1)
    kept = int(before.class_ids[0])
    job.tokens = [job.tokens[kept]]
    (after,) = own.answer([job])
    stay = before.track_ids[before.class_ids == kept].tolist()
    assert set(after.class_ids.tolist()) == {0}
    assert set(stay) <= {*after.track_ids.tolist(), *after.hidden_ids.tolist()}
    assert len(after.presence) == 1
