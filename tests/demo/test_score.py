"""Average precision of answers for which it can be counted by hand."""

import math

import pytest

from demo.score import score

LEFT, RIGHT = (0.0, 0.0, 0.25, 0.5), (0.5, 0.5, 1.0, 1.0)
CASES = {
    # ground truth of one frame, answers, AP50 of boxes and masks
    "all found": ([("a", LEFT), ("a", RIGHT)], [("a", 0.9, LEFT), ("a", 0.8, RIGHT)], 1.0),
    "one of two found": (
        [("a", LEFT), ("a", RIGHT)],
        [("a", 0.9, LEFT)],
        51 / 101,
    ),  # precision 1 up to recall 0.5: 51 of 101 recall points
    "wrong class": ([("a", LEFT)], [("b", 0.9, LEFT)], 0.0),
    "wrong place": ([("a", LEFT)], [("a", 0.9, RIGHT)], 0.0),
    "a false one below a true one": ([("a", LEFT)], [("a", 0.9, LEFT), ("a", 0.2, RIGHT)], 1.0),
    "a false one above a true one": ([("a", LEFT)], [("a", 0.2, LEFT), ("a", 0.9, RIGHT)], 0.5),
    "nothing found": ([("a", LEFT)], [], 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision(case, reel):
    truths, answers, expected = CASES[case]
    total, (alone,) = score([reel(["a", "b"], [truths], [answers])])
    assert total == alone
    assert total.boxes == pytest.approx(expected, abs=1e-6)
    assert total.masks == pytest.approx(expected, abs=1e-6)


def test_no_objects_give_no_score(reel):
    total, _ = score([reel(["a"], [[]], [[("a", 0.9, LEFT)]])])
    assert math.isnan(total.boxes)


def test_cameras_are_scored_alone_and_together(reel):
    good = reel(["a"], [[("a", LEFT)]], [[("a", 0.9, LEFT)]])
    bad = reel(["b"], [[("b", LEFT)]], [[]])
    total, (first, second) = score([good, bad])
    assert (first.boxes, second.boxes) == pytest.approx((1.0, 0.0))
    assert total.boxes == pytest.approx(0.5)  # the mean of two classes


def test_other_classes_are_not_scored(reel):
    total, _ = score([reel(["a"], [[("a", LEFT), ("b", RIGHT)]], [[("a", 0.9, LEFT)]])])
    assert total.boxes == pytest.approx(1.0)


def test_frames_without_an_answer_do_not_shift_the_others(reel):
    camera = reel(["a"], [[("a", LEFT)], [("a", RIGHT)]], [[("a", 0.9, LEFT)], [("a", 0.9, RIGHT)]])
    del camera.shots[0]
    total, _ = score([camera])
    assert total.boxes == pytest.approx(1.0)
