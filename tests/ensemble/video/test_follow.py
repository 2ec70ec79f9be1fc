import numpy as np
import pytest

from ensemble.video.follow import Follower, Found, Propagated, Rules
from ensemble.video.variant import CONFIRMED, NEW, TRACKED

SIDE = 64


def mask(x, y, size=8):
    """A square's packed bits."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[y : y + size, x : x + size] = 1
    return np.packbits(pixels, axis=-1)


EMPTY = mask(0, 0, 0)


def found(*detections):
    """(class, score, mask) of each."""
    classes, scores, bits = zip(*detections, strict=True) if detections else ((), (), ())
    bits = np.stack(bits) if bits else np.zeros((0, SIDE, SIDE // 8), np.uint8)
    return Found(np.array(classes, np.int32), np.array(scores, np.float32), bits)


def seen(*masks, scores=None):
    """What the tracker says; objects without a mask are not there."""
    scores = scores or [5.0 if m.any() else -5.0 for m in masks]
    bits = np.stack(masks) if masks else np.zeros((0, SIDE, SIDE // 8), np.uint8)
    return Propagated(bits, np.array(scores, np.float32))


def ids(step):
    return [shown.object_id for shown in step.shown if shown.bits.any()]


def states(step):
    return {shown.object_id: shown.state for shown in step.shown}


def begun(*detections, **rules):
    follower = Follower(Rules(**rules))
    return follower, follower.frame(0, seen(), found(*detections))


def proven(follower, *masks, frames=4):
    """Frames in which the tracker and the detector agree."""
    for frame in range(1, frames + 1):
        objects = zip(follower.objects, masks, strict=True)
        follower.frame(frame, seen(*masks), found(*[(o.class_id, 0.9, m) for o, m in objects]))
    return frames + 1


def test_detections_begin_objects_and_later_ones_confirm_them():
    follower, first = begun((0, 0.9, mask(0, 0)), (1, 0.8, mask(30, 30)))
    assert states(first) == {1: NEW, 2: NEW}
    assert [seed.object_id for seed in first.seeds] == [1, 2]
    second = follower.frame(1, seen(mask(1, 0), mask(31, 30)), found((0, 0.7, mask(1, 1)), (1, 0.9, mask(60, 2, 4))))
    assert states(second) == {1: CONFIRMED, 2: TRACKED, 3: NEW}
    assert [shown.score for shown in second.shown] == pytest.approx([0.7, 0.8, 0.9])


def test_a_detection_below_the_score_begins_nothing_and_still_confirms():
    follower, first = begun((0, 0.69, mask(0, 0)))
    assert not first.shown
    follower.frame(1, seen(), found((0, 0.9, mask(0, 0))))
    step = follower.frame(2, seen(mask(0, 0)), found((0, 0.5, mask(0, 0))))
    assert states(step) == {1: CONFIRMED}


def test_objects_of_another_class_are_not_confirmed():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    step = follower.frame(1, seen(mask(0, 0)), found((1, 0.9, mask(0, 0))))
    assert states(step) == {1: TRACKED, 2: NEW}


def test_of_detections_on_one_thing_the_best_counts():
    _, step = begun((0, 0.8, mask(1, 0)), (0, 0.9, mask(0, 0)), (0, 0.75, mask(0, 1)))
    assert [(s.object_id, round(s.score, 2)) for s in step.shown] == [(1, 0.9)]


def test_the_order_of_detections_does_not_matter():
    detections = [(0, 0.9, mask(0, 0)), (0, 0.8, mask(20, 0)), (1, 0.95, mask(40, 40)), (0, 0.71, mask(2, 1))]
    first = begun(*detections)[1]
    other = begun(*detections[::-1])[1]
    assert [(s.object_id, s.score) for s in first.shown] == [(s.object_id, s.score) for s in other.shown]


def test_two_hundred_detections_into_sixteen_slots():
    rng = np.random.default_rng(0)
    places = [(x, y) for x in range(0, 64, 4) for y in range(0, 64, 4)][:200]
    scores = rng.permutation(np.linspace(0.71, 0.99, 200))
    crowd = [(0, score, mask(x, y, 3)) for score, (x, y) in zip(scores, places, strict=True)]
    follower, step = begun(*crowd, max_objects=16)
    assert step.dropped == 184
    assert sorted(s.score for s in step.shown) == pytest.approx(sorted(scores)[-16:])
    again = follower.frame(1, seen(*[seed.bits for seed in step.seeds]), found(*crowd))
    assert again.dropped == 184
    assert ids(again) == ids(step) == list(range(1, 17))


def test_a_better_newcomer_does_not_throw_out_what_is_followed():
    follower, _ = begun((0, 0.75, mask(0, 0)), max_objects=1)
    step = follower.frame(1, seen(mask(0, 0)), found((0, 0.75, mask(0, 0)), (0, 0.99, mask(40, 40))))
    assert (ids(step), step.dropped) == ([1], 1)


def test_a_thousand_objects_one_after_the_other_never_exceed_the_cap_and_never_share_an_id():
    follower, known = Follower(Rules(max_objects=4, lost=3)), set()
    for frame in range(1000):
        masks = [EMPTY for _ in follower.objects]
        step = follower.frame(frame, seen(*masks), found((0, 0.9, mask(8 * (3 * frame % 8), 8 * (5 * frame % 8), 4))))
        fresh = {s.object_id for s in step.shown if s.state == NEW}
        assert len(follower.objects) <= 4
        assert not fresh & known
        known |= fresh
    assert len(known) > 300


def test_an_object_behind_another_one_keeps_its_id():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    frame = proven(follower, mask(0, 0))
    for later in range(frame, frame + 20):
        step = follower.frame(later, seen(EMPTY), found())
        assert (ids(step), [s.object_id for s in step.shown]) == ([], [1])
    step = follower.frame(frame + 20, seen(mask(20, 0)), found((0, 0.9, mask(20, 0))))
    assert states(step) == {1: CONFIRMED}


def test_a_mask_that_has_drifted_off_its_object_is_corrected():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    step = follower.frame(1, seen(mask(0, 0)), found((0, 0.8, mask(6, 0))))
    assert [(s.object_id, s.state) for s in step.shown] == [(1, CONFIRMED)]
    assert np.array_equal(step.shown[0].bits, mask(6, 0))
    assert [(seed.object_id, seed.bits.tolist()) for seed in step.seeds] == [(1, mask(6, 0).tolist())]
    assert (follower.objects[0].misses, follower.objects[0].score) == (0, pytest.approx(0.8))


@pytest.mark.parametrize(
    "detections",
    [
        pytest.param([(0, 0.69, mask(6, 0))], id="a detection that would begin nothing"),
        pytest.param([(1, 0.9, mask(6, 0))], id="of another class"),
        pytest.param([(0, 0.9, mask(0, 0)), (0, 0.8, mask(6, 0))], id="another one confirms the object"),
    ],
)
def test_a_mask_stays_as_it_is(detections):
    follower, _ = begun((0, 0.9, mask(0, 0)))
    step = follower.frame(1, seen(mask(0, 0)), found(*detections))
    assert np.array_equal(step.shown[0].bits, mask(0, 0))
    assert not [seed for seed in step.seeds if seed.object_id == 1]


def test_what_the_tracker_has_lost_and_the_detector_finds_nearby_is_the_same_object():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    frame = proven(follower, mask(0, 0))
    follower.frame(frame, seen(EMPTY), found())
    step = follower.frame(frame + 1, seen(EMPTY), found((0, 0.9, mask(10, 0))))
    assert (states(step), ids(step)) == ({1: CONFIRMED}, [1])
    assert [seed.object_id for seed in step.seeds] == [1]


@pytest.mark.parametrize(("class_id", "where", "size"), [(1, 10, 8), (0, 50, 8), (0, 10, 30)])
def test_another_class_place_or_size_is_another_object(class_id, where, size):
    follower, _ = begun((0, 0.9, mask(0, 0)))
    frame = proven(follower, mask(0, 0))
    follower.frame(frame, seen(EMPTY), found())
    step = follower.frame(frame + 1, seen(EMPTY), found((class_id, 0.9, mask(where, 0, size))))
    assert states(step)[2] == NEW


def test_twins_that_cross_keep_their_ids_and_their_pixels():
    follower, _ = begun((0, 0.9, mask(0, 0)), (0, 0.8, mask(40, 0)))
    for frame, step_x in enumerate(range(2, 42, 2), 1):
        own = [mask(step_x, 0), mask(40 - step_x, 0)]
        step = follower.frame(frame, seen(*own, scores=[6.0, 5.0]), None)
        assert not (step.keep[0] & step.keep[1]).any()
    assert [s.object_id for s in step.shown] == [1, 2]
    assert ids(step) == [1, 2]


def test_of_two_objects_on_one_thing_the_younger_is_suppressed_and_ends():
    follower, _ = begun((0, 0.9, mask(0, 0)), (0, 0.8, mask(40, 0)))
    ended = []
    for frame in range(1, 9):
        step = follower.frame(frame, seen(*[mask(0, 0)] * len(follower.objects)), None)
        assert ids(step) == [1]
        if frame < 8:
            assert step.there.tolist() == [1, 0]
        ended += step.ended
    assert ended == [2]


def test_objects_of_two_classes_may_share_pixels():
    follower, _ = begun((0, 0.9, mask(0, 0)), (1, 0.8, mask(40, 0)))
    step = follower.frame(1, seen(mask(0, 0), mask(0, 0)), None)
    assert ids(step) == [1, 2]
    assert (step.keep[0] == step.keep[1]).all()


def test_a_mask_that_loses_most_of_itself_is_not_remembered():
    follower, _ = begun((0, 0.9, mask(0, 0)), (0, 0.8, mask(40, 0)))
    step = follower.frame(1, seen(mask(0, 0, 16), mask(0, 0, 12), scores=[5.0, 4.0]), None)
    assert step.keep[0].any()
    assert not step.keep[1].any()


def test_an_object_that_nothing_confirms_ends():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    steps = [follower.frame(frame, seen(mask(0, 0)), found()) for frame in (1, 2, 3)]
    assert [step.ended for step in steps] == [[], [], [1]]
    assert not follower.objects


def test_frames_without_a_look_confirm_nothing_and_doubt_nothing():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    for frame in range(1, 50):
        step = follower.frame(frame, seen(mask(0, 0)), None)
    assert states(step) == {1: TRACKED}


def test_a_proven_object_is_doubted_for_long():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    frame = proven(follower, mask(0, 0))
    steps = [follower.frame(frame + n, seen(mask(0, 0)), found()) for n in range(30)]
    assert [step.ended for step in steps] == [[]] * 29 + [[1]]


def test_an_object_that_the_detector_does_not_see_any_more_is_kept_and_not_shown_until_it_does():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    frame = proven(follower, mask(0, 0))
    steps = [follower.frame(frame + n, seen(mask(0, 0)), found()) for n in range(4)]
    assert [ids(step) for step in steps] == [[1], [1], [], []]
    assert all(step.there.tolist() == [1] and step.keep.any() for step in steps)
    step = follower.frame(frame + 4, seen(mask(0, 0)), found((0, 0.6, mask(0, 0))))
    assert (ids(step), states(step)) == ([1], {1: CONFIRMED})


def test_an_object_that_is_lost_ends_and_its_place_is_free():
    follower, _ = begun((0, 0.9, mask(0, 0)), lost=5, max_objects=1)
    steps = [follower.frame(frame, seen(EMPTY), None) for frame in range(1, 6)]
    assert steps[-1].ended == [1]
    assert states(follower.frame(6, seen(), found((0, 0.9, mask(0, 0))))) == {2: NEW}


def test_a_confident_detection_is_a_new_conditioning_frame_every_sixteen_frames():
    follower, _ = begun((0, 0.9, mask(0, 0)))
    seeds = set()
    for frame in range(1, 40):
        step = follower.frame(frame, seen(mask(0, 0)), found((0, 0.85, mask(0, 0))))
        seeds |= {(frame, seed.object_id) for seed in step.seeds}
    assert seeds == {(16, 1), (32, 1)}


def test_a_session_goes_on_with_the_ids_that_it_had():
    follower = Follower()
    follower.seed(0, np.array([7, 3]), np.array([0, 1], np.int32), np.stack([mask(0, 0), mask(30, 30)]))
    step = follower.frame(0, seen(mask(0, 0), mask(30, 30)), found((0, 0.9, mask(0, 0)), (0, 0.8, mask(50, 0))))
    assert states(step) == {7: CONFIRMED, 3: TRACKED, 8: NEW}


def test_ids_begin_where_they_are_told_to():
    follower = Follower(first_id=40)
    assert states(follower.frame(0, seen(), found((0, 0.9, mask(0, 0))))) == {40: NEW}


def test_objects_of_a_class_that_is_gone_end_and_others_keep_their_ids():
    follower, _ = begun((0, 0.9, mask(0, 0)), (1, 0.8, mask(40, 0)))
    follower.close_classes({1: 0})
    step = follower.frame(1, seen(mask(40, 0)), found((0, 0.9, mask(40, 0))))
    assert [(s.object_id, s.class_id) for s in step.shown] == [(2, 0)]
