"""Tracks keep their ids, and objects that stay in a zone make events."""

import numpy as np
import pytest

from clients.fleet.tracks import Tracker
from clients.fleet.zones import Zone, ZoneMonitor

pytest.importorskip("supervision")


def scene(detections, things):
    """Detections of (class id, left, upper) in 0..1, a tenth of the frame wide and high."""
    boxes = np.array([[x, y, x + 0.1, y + 0.1] for _, x, y in things], np.float32).reshape(-1, 4)
    ids = np.array([c for c, _, _ in things], np.int32)
    return detections(0, boxes=boxes, class_ids=ids, scores=np.linspace(0.95, 0.8, len(things)).astype(np.float32))


def test_objects_keep_their_ids(detections):
    """Two circles move through the frame in opposite directions, one above the other; their order in the answers
    changes."""
    tracker, seen = Tracker(fps=10), []
    for t in range(15):
        things = [(1, 0.1 + 0.03 * t, 0.2), (1, 0.8 - 0.03 * t, 0.6)]
        ids = tracker.update(scene(detections, things if t % 2 else things[::-1]))
        seen.append(tuple(ids if t % 2 else ids[::-1]))
    assert len(set(seen)) == 1
    assert min(seen[0]) > 0
    assert seen[0][0] != seen[0][1]


def test_classes_do_not_share_ids(detections):
    tracker = Tracker(fps=10)
    first = tracker.update(scene(detections, [(0, 0.4, 0.4), (1, 0.4, 0.4)]))
    assert sorted(first) == [1, 2]
    swapped = tracker.update(scene(detections, [(1, 0.41, 0.4), (0, 0.41, 0.4)]))
    assert swapped.tolist() == first[::-1].tolist()


@pytest.mark.parametrize(("away", "same"), [(3, True), (60, False)], ids=["briefly", "for long"])
def test_an_object_that_was_not_seen(detections, away, same):
    tracker = Tracker(fps=10, lost_s=1.0)
    for _ in range(5):
        (before,) = tracker.update(scene(detections, [(1, 0.4, 0.4)]))
    for _ in range(away):
        assert len(tracker.update(scene(detections, []))) == 0
    for _ in range(3):
        (after,) = tracker.update(scene(detections, [(1, 0.4, 0.4)]))
    assert (int(after) == int(before)) is same


SQUARE = ((0.2, 0.2), (0.6, 0.2), (0.6, 0.6), (0.2, 0.6))
ELL = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.3), (0.3, 0.3), (0.3, 1.0), (0.0, 1.0))


@pytest.mark.parametrize(
    ("polygon", "point", "inside"),
    [
        (SQUARE, (0.4, 0.4), True),
        (SQUARE, (0.7, 0.4), False),
        (SQUARE, (0.1, 0.4), False),
        (SQUARE, (0.4, 0.9), False),
        (ELL, (0.1, 0.9), True),
        (ELL, (0.9, 0.1), True),
        (ELL, (0.9, 0.9), False),
    ],
)
def test_points_in_polygons(polygon, point, inside):
    assert Zone("a", polygon).contains(np.array([point])).tolist() == [inside]


def test_one_event_for_each_stay(detections):
    monitor = ZoneMonitor([Zone("gate", SQUARE, seconds=1.0, classes=("red circle",))])
    inside = scene(detections, [(1, 0.35, 0.35), (0, 0.35, 0.35)])
    outside = scene(detections, [(1, 0.8, 0.8), (0, 0.8, 0.8)])
    ids = np.array([7, 8])
    events = {}
    for t in range(80):
        where = outside if 30 <= t < 60 else inside  # three seconds away
        if happened := monitor.update(where, ids, t / 10):
            events[t] = happened
    assert events == {
        10: [{"zone": "gate", "label": "red circle", "track": 7, "seconds": 1.0}],
        70: [{"zone": "gate", "label": "red circle", "track": 7, "seconds": 1.0}],
    }


def test_no_track_no_event(detections):
    monitor = ZoneMonitor([Zone("gate", SQUARE)])
    assert monitor.update(scene(detections, [(1, 0.35, 0.35)]), np.array([-1]), 0.0) == []
    assert monitor.update(scene(detections, []), np.zeros(0, np.int64), 1.0) == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(ImportError, match=r"sam3-triton\[tracks\]"):
        Tracker(fps=10)
