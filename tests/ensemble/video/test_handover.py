from dataclasses import replace

import numpy as np
import pytest

from ensemble.interfaces import engine
from ensemble.request import FrameRequest, RequestError
from ensemble.spec import Checkpoint, Tracker, Variant
from ensemble.video.handover import pack_answers, pack_closed, pack_jobs, unpack_answers, unpack_jobs
from ensemble.video.request import Asked, Seeds
from ensemble.video.turns import Tracks, VideoJob
from ensemble.video.variant import STAGES, VideoVariant

V = Variant(28, precision="fp32", checkpoint=Checkpoint(hidden_size=8), tracker=Tracker(16, 8))
VIDEO = VideoVariant(V, V)
EMPTY = np.zeros((0, 8, 1), np.uint8)
TOKENS = (np.arange(32, dtype=np.int32), np.ones(32, np.int32))


def job(session, seeds=0, names=2, **asked):
    frame = np.full((28, 28, 3), session % 256, np.uint8)
    given = Seeds(np.arange(seeds), np.zeros(seeds, np.int32), np.full((seeds, 8, 1), 7, np.uint8)) if seeds else None
    told = Asked(session, start=bool(seeds), seeds=given, **asked)
    return VideoJob(FrameRequest((), frame=frame, mask_format="bits"), [TOKENS] * names, (28, 28), asked=told)


def tracks(count):
    return Tracks(
        np.full((count, 4), 0.5, np.float32),
        np.full(count, 0.9, np.float32),
        np.zeros(count, np.int32),
        np.ones(2, np.float32),
        np.full((count, 8, 1), 3, np.uint8),
        np.arange(count) + 2**40,
        np.full(count, 0.8, np.float32),
        np.full(count, 2, np.int32),
        np.array([5, 6]),
        frame_index=12,
        dropped_objects=3,
        session_bytes=2**33,
    )


def test_jobs_arrive_as_they_were_sent():
    sent = [job(2**63 + 5, detect_every=4), job(7, seeds=2, max_objects=3, first_id=2**40), job(8, end=True)]
    got = unpack_jobs(pack_jobs("sam3_video_r28", sent, VIDEO), VIDEO)
    for one, other in zip(sent, got, strict=True):
        assert replace(one.asked, seeds=None) == replace(other.asked, seeds=None)
        assert (one.request.frame == other.request.frame).all()
    assert got[0].asked.seeds is None
    assert got[1].asked.seeds.ids.tolist() == [0, 1]
    assert (got[1].asked.seeds.bits == 7).all()


def test_answers_arrive_as_they_were_sent():
    sent = [job(1), job(2), job(3)]
    arrays = pack_answers(sent, [tracks(2), RuntimeError("no luck"), tracks(0)], EMPTY)
    first, failed, nothing = unpack_answers(arrays, sent)
    assert first.track_ids.tolist() == [2**40, 2**40 + 1]
    assert (first.hidden_ids.tolist(), first.frame_index, first.dropped_objects) == ([5, 6], 12, 3)
    assert first.session_bytes == 2**33
    assert "no luck" in str(failed)
    assert (len(nothing.track_ids), nothing.hidden_ids.tolist()) == (0, [5, 6])
    assert arrays["stage_ms"].shape == (3, len(STAGES))


def test_every_tensor_is_one_of_the_engine_models():
    inputs = {tensor.name for tensor in engine().inputs}
    outputs = {tensor.name for tensor in engine().outputs}
    assert pack_jobs("sam3_video_r28", [job(1)], VIDEO).keys() <= inputs
    assert pack_closed("sam3_video_r28", [1, 2], VIDEO).keys() <= inputs
    assert pack_answers([job(1)], [tracks(1)], EMPTY).keys() == outputs


WRONG = {
    "no sessions": ({"sessions": None}, "expected all tensors of a session"),
    "sessions of others": ({"sessions": np.zeros(5, np.int64)}, "expected sessions of 1 frames, got 5"),
    "flags of anything": ({"session_flags": np.array([9], np.int32)}, "session_flags of 0 to 3"),
    "never looks": ({"detect_every": np.array([0], np.int32)}, "detect_every of 1 to"),
    "a million objects": ({"max_objects": np.array([10**6], np.int32)}, "max_objects of 1 to"),
    "seeds that are not there": ({"seeds_per_frame": np.array([2], np.int32)}, r"expected seed_masks \(2, 8, 1\)"),
    "fewer than no seeds": ({"seeds_per_frame": np.array([-1], np.int32)}, "as many seeds as objects"),
    "a class of nobody": (
        {
            "seeds_per_frame": np.array([1], np.int32),
            "seed_ids": np.array([1]),
            "seed_classes": np.array([7], np.int32),
            "seed_masks": np.ones((1, 8, 1), np.uint8),
        },
        "seed_classes of 0 to 1",
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_together_is_refused(changes, sentence):
    arrays = {**pack_jobs("sam3_video_r28", [job(1)], VIDEO), **changes}
    with pytest.raises(RequestError, match=sentence):
        unpack_jobs({name: array for name, array in arrays.items() if array is not None}, VIDEO)
