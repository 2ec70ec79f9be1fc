import numpy as np
import pytest

from ensemble.request import RequestError
from ensemble.spec import Checkpoint, Tracker, Variant
from ensemble.video.request import parse
from ensemble.video.variant import VideoVariant, is_video_name

V = Variant(28, precision="fp32", checkpoint=Checkpoint(hidden_size=8), tracker=Tracker(16, 8))
VIDEO = VideoVariant(V, V)
FRAME = np.zeros((1, 4, 4, 3), np.uint8)


def arrays(**changes):
    """A frame in a session's course."""
    control = {"START": np.array([[0]], np.int32), "END": np.array([[0]], np.int32)}
    sent = {"frame": FRAME, "classes": np.array([[b"dog"]], object), "CORRID": np.array([[9]], np.uint64)}
    made = {**control, **sent, **changes}
    return {name: array for name, array in made.items() if array is not None}


def seeds(count=1, size=8, row=1, ids=None, classes=None, value=255):
    return {
        "START": np.array([[1]], np.int32),
        "seed_ids": np.array([ids or list(range(1, count + 1))], np.int64),
        "seed_classes": np.array([classes or [0] * count], np.int32),
        "seed_masks": np.full((1, count, size, row), value, np.uint8),
    }


def test_a_frame_says_whose_it_is_and_what_it_wants():
    asked = parse(arrays(detect_every=np.array([[8]], np.int32), max_objects=np.array([[3]], np.int32)), VIDEO).asked
    assert (asked.session, asked.start, asked.end, asked.detect_every, asked.max_objects) == (9, False, False, 8, 3)
    assert asked.seeds is None


def test_seeds_come_with_the_first_frame():
    given = parse(arrays(**seeds(2)), VIDEO).asked.seeds
    assert (given.ids.tolist(), given.class_ids.tolist(), given.bits.shape) == ([1, 2], [0, 0], (2, 8, 1))


def test_a_session_may_end_without_a_frame():
    ended = parse(arrays(END=np.array([[1]], np.int32), frame=None, classes=None), VIDEO)
    assert (ended.frame, ended.asked.session, ended.asked.end) == (None, 9, True)


BAD = {
    "no session": (arrays(CORRID=None), "expected a frame of a session, got one without CORRID"),
    "session zero": (arrays(CORRID=np.array([[0]], np.uint64)), "expected a sequence id of 1 or more"),
    "no frame": (arrays(frame=None), "exactly one of image .* got neither"),
    "no classes": (arrays(classes=None), "expected at least one class name"),
    "never looks": (arrays(detect_every=np.array([[0]], np.int32)), "detect_every: expected 1 to 1000, got 0"),
    "too many objects": (arrays(max_objects=np.array([[5000]], np.int32)), "max_objects: expected 1 to 256, got 5000"),
    "seeds in mid-stream": (arrays(**{**seeds(), "START": np.array([[0]], np.int32)}), "first frame alone"),
    "masks of another resolution": (arrays(**seeds(size=40, row=5)), r"expected \[1, 8, 1\].* do not fit"),
    "an id twice": (arrays(**seeds(2, ids=[4, 4])), "expected each id once"),
    "a negative id": (arrays(**seeds(1, ids=[-4])), "0 or more"),
    "a class that is not there": (arrays(**seeds(1, classes=[1])), r"expected indices into classes \(0 to 0\)"),
    "empty masks": (arrays(**seeds(2, value=0)), r"at least one pixel, those of \[1, 2\] are empty"),
    "ids alone": (arrays(**{**seeds(), "seed_masks": None}), "go together, got seed_ids, seed_classes alone"),
    "more seeds than objects": (arrays(**seeds(20)), r"at most max_objects \(16\), got 20"),
}


@pytest.mark.parametrize(("sent", "sentence"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_said_in_a_sentence(sent, sentence):
    with pytest.raises(RequestError, match=sentence):
        parse(sent, VIDEO)


def test_names_say_both_resolutions():
    low = Variant(14, precision="fp32", checkpoint=V.checkpoint, tracker=V.tracker)
    assert VIDEO.front_name == "sam3_video_r28"
    assert VideoVariant(V, low).front_name == "sam3_video_r28_t14"
    assert is_video_name("sam3_video_r28_t14")
    assert not is_video_name("sam3_r28")
    assert VideoVariant.from_dict(VideoVariant(V, low).to_dict()) == VideoVariant(V, low)


@pytest.mark.parametrize(
    ("tracking", "sentence"),
    [
        (Variant(28, precision="fp32", checkpoint=V.checkpoint), "has no tracker"),
        (Variant(42, precision="fp32", checkpoint=V.checkpoint, tracker=V.tracker), "at most the detector's 28 pixels"),
        (Variant(28, precision="fp16", checkpoint=V.checkpoint, tracker=V.tracker), "checkpoint and precision"),
    ],
)
def test_what_does_not_go_together_is_refused(tracking, sentence):
    with pytest.raises(ValueError, match=sentence):
        VideoVariant(V, tracking)
