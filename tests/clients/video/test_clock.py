"""Clocks: times of frames that jump, stand still, go back or are missing, and frames that arrive all at once."""

import itertools
import math

import pytest

from clients.video.clock import MOST_ALIKE, PATIENCE_S, USUAL_FPS, FilmClock, Pace, likely_rate

NONE = [None] * 4
CLOCKS = {
    "from zero": ([0, 0.1, 0.2, 0.3], [0, 0.1, 0.2, 0.3]),
    "from two hours": ([7200, 7200.1, 7200.2], [0, 0.1, 0.2]),
    "from before zero": ([-5, -4.9, -4.8], [0, 0.1, 0.2]),
    "no times": (NONE, [0, 0.1, 0.2, 0.3]),
    "no number": ([0, math.nan, math.inf, 0.3], [0, 0.1, 0.2, 0.3]),
    "a time is missing": ([5, None, 5.2, 5.3], [0, 0.1, 0.2, 0.3]),
    "the first is missing": ([None, 7200, 7200.1], [0, 0.1, 0.2]),
    "another rate than told": ([0, 0.5, 1.0, 1.5], [0, 0.5, 1.0, 1.5]),
    "uneven": ([0, 0.02, 0.5, 0.51], [0, 0.02, 0.5, 0.51]),
    "ahead for good": ([0, 0.1, 3000, 3000.1], [0, 0.1, 0.2, 0.3]),
    "ahead and back": ([0, 0.1, 3000, 3000.1, 0.4, 0.5], [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    "back for good": ([3000, 3000.1, 0, 0.1, 0.2], [0, 0.1, 0.2, 0.3, 0.4]),
    "back and ahead": ([3000, 3000.1, 0, 0.1, 3000.4], [0, 0.1, 0.2, 0.3, 0.4]),
    "joined recordings": ([0, 0.1, 0, 0.1, 0, 0.1], [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    "joined, with a gap": ([0, 9, 0, 5, 0, 5], [0, 9, 9.1, 14.1, 14.2, 19.2]),
    "33 bits are full": ([95443.6, 95443.7, 0.1, 0.2], [0, 0.1, 0.2, 0.3]),
    "out of order": ([0, 0.2, 0.1, 0.4, 0.3, 0.6, 0.7], [0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
    "each twice": ([0, 0, 0.2, 0.2, 0.4, 0.4], [0, 0, 0.2, 0.2, 0.4, 0.4]),
    "runs backwards": ([0.3, 0.2, 0.1, 0.0], [0, 0.1, 0.2, 0.3]),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_times_begin_at_zero_and_keep_seconds(case):
    raw, expected = CLOCKS[case]
    clock = FilmClock(10, 10.0)
    seconds = [clock.seconds(time) for time in raw]
    assert seconds == pytest.approx(expected)
    assert seconds == sorted(seconds)


def test_a_clock_that_stands_still_is_none():
    clock = FilmClock(10, 10.0)
    seconds = [clock.seconds(0.0) for _ in range(MOST_ALIKE + 20)]
    assert seconds == sorted(seconds)
    assert seconds[-1] - seconds[MOST_ALIKE] == pytest.approx(1.9)


def test_a_pause_is_kept_where_it_may_be_one():
    slides, camera = FilmClock(10, 60.0), FilmClock(10, 10.0)
    assert [slides.seconds(t) for t in (0, 45)] == [0, 45]
    assert [camera.seconds(t) for t in (0, 45)] == pytest.approx([0, 0.1])


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((29.97, 90000.0), 29.97),
        ((90000.0, 12.5, 25.0), 12.5),
        ((None, None), USUAL_FPS),
        ((0.0, 1000.0), USUAL_FPS),
        ((math.nan, math.inf, 5.0), 5.0),
        ((0.5,), 0.5),
    ],
    ids=str,
)
def test_the_likely_rate(rates, expected):
    assert likely_rate(rates) == expected


def played(pace, frames):
    """When frames that arrive at the given times are handed out; each is (time in the film, arrival) in seconds."""
    now, out = 0.0, []
    for film_s, arrival in frames:
        now = max(now, arrival)
        now += pace.wait_s(film_s, now)
        out.append(now)
    return out


def test_even_frames_do_not_wait():
    assert played(Pace(), [(i / 10, i / 10) for i in range(50)]) == pytest.approx([i / 10 for i in range(50)])


def test_a_burst_is_spread_and_made_up_for():
    """Four seconds at once, then even frames: all are played a quarter faster until none waits any more."""
    burst = [(i / 10, 0.0) for i in range(40)] + [(i / 10, i / 10) for i in range(40, 300)]
    out = played(Pace(), burst)
    steps = [b - a for a, b in itertools.pairwise(out)]
    assert max(steps[:39]) == pytest.approx(0.08)
    assert max(steps) < 0.9  # between the end of the burst and the frames after it
    assert out[-1] == pytest.approx(29.9)


def test_segments_are_played_by_their_clock():
    """Eight seconds at once, every eight seconds, from one segment before the newest."""
    frames = [(8 * n + i / 10, max(0.0, 8.0 * (n - 1))) for n in range(4) for i in range(80)]
    out = played(Pace(steady=True), frames)
    assert out == pytest.approx([film_s for film_s, _ in frames])


def test_a_clock_that_runs_slow_is_not_followed_for_ever():
    """Frames come ten times a second, and tell of five."""
    out = played(Pace(), [(i / 5, i / 10) for i in range(2000)])
    assert out[-1] == pytest.approx(199.9)
    assert max(t - i / 10 for i, t in enumerate(out)) < PATIENCE_S


def test_pauses_of_a_clock_are_not_waited_for():
    pace = Pace()
    assert pace.wait_s(0.0, 0.0) == 0
    assert pace.wait_s(9.0, 0.0) == 1.0
