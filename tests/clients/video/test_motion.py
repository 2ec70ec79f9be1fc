"""The motion gate: what it takes for movement, and what it does not."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clients.video.motion import Motion, MotionGate, watched

HEIGHT, WIDTH, MARGIN = 180, 320, 2
RNG = np.random.default_rng(7)
SIZE = (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN)
WHOLE = np.asarray(
    Image.fromarray(RNG.integers(50, 190, (9, 16, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC), np.float32
)
NOISE = RNG.normal(0, 4.0, (11, HEIGHT, WIDTH, 3)).astype(np.float32)
USUAL = Motion()


def shifted(down=0, right=0):
    return WHOLE[MARGIN + down :, MARGIN + right :][:HEIGHT, :WIDTH]


YARD = shifted()


def seen(picture, i):
    """The picture as a camera with noise of four grey levels shows it, uint8 [H,W,3]."""
    return np.clip(picture + NOISE[i % len(NOISE)], 0, 255).astype(np.uint8)


def with_box(x, y=90, side=12, colour=(220, 60, 60)):
    picture = YARD.copy()
    picture[y : y + side, x : x + side] = colour
    return picture


def lit(gain=1.0, offset=0.0):
    return YARD * gain + offset


def lamp():
    """Light that falls on the right half, strongest at the edge."""
    return YARD * (1 + np.clip(np.arange(WIDTH) / WIDTH - 0.5, 0, 1) * 1.5)[:, None].astype(np.float32)


def sent(pictures, motion=USUAL, tail=0, fps=10.0):
    """Whether each frame is sent: all of them taken at once."""
    gate, found = MotionGate(motion, tail), []
    for i, picture in enumerate(pictures):
        view = gate.look(seen(picture, i), i / fps)
        if not view.still:
            gate.sent(view)
        found.append(not view.still)
    return found


QUIET = [YARD] * 16
SHAKES = ((1, 0), (0, 1), (-1, 0), (0, -1), (0, 0))
WALK = [with_box(50 + 4 * i) for i in range(10)]
RED = tuple(YARD[95, 155] + (70, 0, -70))

AFTERWARDS = {
    # what is seen after some quiet frames: (the pictures, how many of them are sent)
    "noise": (QUIET, 0),
    "slow gain": ([lit(1 + 0.005 * i) for i in range(30)], 0),
    "slow offset": ([lit(offset=0.5 * i) for i in range(30)], 0),
    "a shaking pole": ([shifted(*SHAKES[i % 5]) for i in range(20)], 0),
    "a lamp": ([lamp()] * 16, 1),
    "a lamp everywhere": ([lit(offset=45.0)] * 16, 1),
    "a hand over the lens": ([lit(0.0, 90.0)] * 16, 1),
    "it appears and stays": ([with_box(150)] * 16, 1),
    "it moves and stops": ([*WALK, *[WALK[-1]] * 16], 10),
    "it moves and is gone": ([*WALK, *QUIET], 11),
    "another colour, equally bright": ([with_box(150, colour=RED)] * 16, 1),
}


@pytest.mark.parametrize("case", AFTERWARDS)
def test_frames_that_are_sent(case):
    pictures, expected = AFTERWARDS[case]
    found = sent(QUIET + pictures)
    assert found[:16] == [True] + [False] * 15
    assert sum(found[16:]) == expected
    assert found[16] == (expected > 0), "the first frame of what happens"


def test_slow_movement_adds_up():
    """A quarter of a pixel in each frame."""
    found = sent([with_box(150)] * 16 + [with_box(150 + round(0.25 * i)) for i in range(40)])
    assert 2 <= sum(found[16:]) <= 10


@pytest.mark.parametrize(
    ("motion", "box", "expected"),
    [
        (Motion(), (150, 90), True),
        (Motion(regions=(((0.4, 0.4), (0.6, 0.4), (0.6, 0.7), (0.4, 0.7)),)), (150, 90), False),
        (Motion(regions=(((0.4, 0.4), (0.6, 0.4), (0.6, 0.7), (0.4, 0.7)),)), (50, 90), True),
        (Motion(smallest=0.01), (150, 90), False),
        (Motion(sensitivity=0.0), (150, 90), True),
    ],
    ids=["plain", "in a masked region", "beside it", "too small", "strong contrast"],
)
def test_options(motion, box, expected):
    assert sent([*QUIET, with_box(*box)], motion)[-1] == expected


@pytest.mark.parametrize(("sensitivity", "expected"), [(0.0, False), (0.5, False), (1.0, True)])
def test_sensitivity_is_contrast(sensitivity, expected):
    """Nine grey levels more in an object."""
    fainter = YARD.copy()
    fainter[90:110, 150:170] += 9
    assert sent([*QUIET, fainter], Motion(sensitivity))[-1] == expected


def test_the_longest_silence():
    """A second has ten frames."""
    assert [i for i, one in enumerate(sent([YARD] * 35, Motion(refresh_s=1.0))) if one] == [0, 10, 20, 30]


def test_a_tail_after_each_movement():
    """With a detector that looks at every third frame."""
    found = sent([*QUIET, with_box(50), with_box(55), *[with_box(55)] * 10], tail=2)
    assert [i for i, one in enumerate(found) if one] == [0, 1, 2, 16, 17, 18, 19]


def test_nothing_is_still_after_a_failure():
    gate = MotionGate(Motion())
    view = gate.look(seen(YARD, 0), 0.0)
    gate.sent(view)
    assert gate.look(seen(YARD, 1), 0.1).still
    gate.forget()
    assert not gate.look(seen(YARD, 2), 0.2).still


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 3), (8, 8, 3), (3, 4000, 3), (1920, 1080, 3)])
def test_frames_of_any_size(shape):
    gate = MotionGate(Motion())
    gate.sent(gate.look(np.full(shape, 90, np.uint8), 0.0))
    assert gate.look(np.full(shape, 90, np.uint8), 0.1).still
    assert not gate.look(np.full((16, 16, 3), 90, np.uint8), 0.2).still, "another size is another picture"


def test_regions():
    assert watched((), 4, 4).all()
    half = watched((((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),), 10, 20)
    assert half.mean() == pytest.approx(0.5, abs=0.06)
    assert half[:, 12:].all()
    with pytest.raises(ValueError, match="leave a part of the frame"):
        Motion(regions=(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),))


def test_it_takes_the_time_of_its_own_thread_only():
    """A library whose threads wait for more to do by spinning would take thirty times as much, between the frames."""
    code = """if True:
        import time, numpy as np
        from clients.video.motion import Motion, MotionGate
        gate, rng = MotionGate(Motion()), np.random.default_rng(0)
        frames = [rng.integers(80, 100, (360, 640, 3), np.uint8) for _ in range(20)]
        gate.sent(gate.look(frames[0], 0.0))
        all_threads, own = time.process_time(), time.thread_time()
        for i, frame in enumerate(frames):
            gate.look(frame, i / 10)
            time.sleep(0.03)
        print((time.process_time() - all_threads) / (time.thread_time() - own))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2
