"""What the page says of what a camera gets, and why not all that it wishes for."""

import pytest

from clients.dashboard.shares import Share
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.video.motion import Motion


def share(read, answered, still=0, moving=True, failed=0, dropped=None, **options):
    """After two seconds with these counts."""
    camera = Camera(CameraConfig("yard", "none", ("person",), (0.5,), **options))
    if camera.gate is not None:
        camera.gate.still_s = 0.0 if moving else 60.0
    looks = Share(camera)
    assert looks.look(10.0)["asked"] is None
    camera.reader.read, camera.stats.answered, camera.stats.still = read, answered, still
    camera.stats.dropped.update(dropped or {})
    camera.stats.failed.update({"timeout": failed})
    return looks.look(12.0)


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({"read": 20, "answered": 20}, ""),
        ({"read": 20, "answered": 1, "still": 18}, ""),
        ({"read": 20, "answered": 16}, ""),
        (
            {"read": 20, "answered": 8, "dropped": {"no_turn": 11}, "motion": Motion(), "moving": False},
            "below target: 40 % of its wish, weight 1, still; waits for its turn",
        ),
        (
            {"read": 20, "answered": 8, "dropped": {"no_turn": 3, "replaced": 9}, "in_flight": 1, "weight": 2.5},
            "below target: 40 % of its wish, weight 2.5; waits for its own answers, at most 1 at a time",
        ),
        (
            {"read": 20, "answered": 8, "dropped": {"no_turn": 12}, "least_fps": 6.0, "motion": Motion()},
            "below target: 40 % of its wish, weight 1, moving, floor of 6 fps is not kept; waits for its turn",
        ),
        (
            {"read": 20, "answered": 8, "dropped": {"no_turn": 12}, "least_fps": 4.0},
            "below target: 40 % of its wish, weight 1, floor of 4 fps; waits for its turn",
        ),
        ({"read": 20, "answered": 0, "dropped": {"no_server": 18}}, "0 % of its wish, weight 1; no server is there"),
        ({"read": 20, "answered": 5, "failed": 15}, "below target: 25 % of its wish, weight 1; its frames fail"),
    ],
    ids=[
        "all",
        "still frames are answered",
        "frames under way",
        "no turn",
        "own answers",
        "a floor that is not kept",
        "a floor that is",
        "no server",
        "failures",
    ],
)
def test_why(counts, why):
    told = share(**counts)
    assert told["why"].endswith(why)
    assert bool(told["why"]) == bool(why)
    assert told["asked"] == 10
    assert told["got"] == (counts["answered"] + counts.get("still", 0)) / 2


def test_rates_are_those_of_the_latest_seconds():
    """However often, or how long nobody, looks."""
    camera = Camera(CameraConfig("yard", "none", ("person",), (0.5,)))
    looks = Share(camera)
    for tick in range(1000):
        camera.reader.read += 1 if tick < 500 else 4
        camera.stats.answered = camera.reader.read
        told = looks.look(tick / 10)
    assert (told["asked"], told["got"], told["why"]) == (40, 40, "")
    assert len(looks._looks) < 20
