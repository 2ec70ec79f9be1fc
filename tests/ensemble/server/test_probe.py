"""Busy is not dead: what a supervision makes of a probe that does not come back, with a clock and counters of the
test's."""

import threading

import pytest

from ensemble.interfaces import ENGINE_MODEL
from ensemble.server.requirements import ServerError
from ensemble.server.supervision import BUSY_SHARE, LONGEST_SILENCE_S, OVERTAKEN, SILENCE_S, Probe
from tests.clock import Clock

FRONT, OTHER = "sam3_r140", "sam3_r252"


class Health:
    """Counters that a test moves; the probe comes back when `back` is set, with `error` where there is one."""

    def __init__(self, waiting=0):
        self.counts, self.queue, self.seconds = {FRONT: 7, OTHER: 3, ENGINE_MODEL: 10}, {FRONT: waiting}, 0.0
        self.back, self.error = threading.Event(), ""

    def probe(self, front, timeout):
        assert timeout > LONGEST_SILENCE_S
        self.back.wait(60)
        if self.error:
            raise ServerError(self.error)

    def answered(self):
        return dict(self.counts)

    def waiting(self):
        return dict(self.queue)

    def engine_seconds(self):
        return self.seconds


@pytest.fixture
def health():
    made = Health()
    yield made
    made.back.set()


def nothing(health, step):
    """Nothing moves."""


def answers(health, step):
    health.counts[FRONT] += 1


def rare_answers(health, step):
    health.counts[FRONT] += step % 5 == 0


def others_answers(health, step):
    health.counts[OTHER] += 5
    health.counts[ENGINE_MODEL] += 1


def computes(health, step):
    health.seconds += 2 * BUSY_SHARE * STEP_S


def spins_a_little(health, step):
    health.seconds += 0.5 * BUSY_SHARE * STEP_S


def says_nothing(health, step):
    health.counts = {}


def wakes_up(health, step):
    health.counts = {} if step < 4 else {FRONT: 7 + step, ENGINE_MODEL: 10 + step}


STEP_S = 10.0
NEVER = 10**9
CASES = {
    "answers go on": (answers, NEVER),
    "an answer every 50 seconds": (rare_answers, NEVER),
    "nothing": (nothing, SILENCE_S),
    "the server says nothing at all": (says_nothing, SILENCE_S),
    "frozen for 30 seconds": (wakes_up, NEVER),
    "the engine answers other front models": (others_answers, LONGEST_SILENCE_S),
    "one batch on the CPU takes long": (computes, LONGEST_SILENCE_S),
    "the engine's process turns over idly": (spins_a_little, SILENCE_S),
}


@pytest.mark.parametrize(("happens", "patience"), CASES.values(), ids=CASES)
def test_when_a_front_model_is_taken_for_hanging(health, happens, patience):
    clock = Clock(1000.0)
    probe = Probe(health, FRONT, clock)
    for step in range(1, 200):
        clock.now += STEP_S
        happens(health, step)
        if silent := probe.look():
            assert f"{FRONT} does not answer: nothing for" in silent
            assert patience < step * STEP_S <= patience + STEP_S
            return
    assert patience == NEVER


@pytest.mark.parametrize(("waiting", "restart_at"), [(0, OVERTAKEN), (450, 450 + OVERTAKEN)], ids=["idle", "a queue"])
def test_a_probe_that_is_overtaken(health, waiting, restart_at):
    """A part of the server hangs, the others answer: all that waited before the probe, and many that came later."""
    health.queue = {FRONT: waiting}
    probe = Probe(health, FRONT)
    before = health.counts[FRONT]
    health.counts[FRONT] = before + restart_at
    assert probe.look() == ""
    health.counts[FRONT] += 1
    assert "more have been answered since than waited before it" in probe.look()


def test_without_metrics_nobody_knows_what_waits(health):
    health.queue = {}
    probe = Probe(health, FRONT)
    health.counts[FRONT] += 100 * OVERTAKEN
    assert probe.look() == ""


@pytest.mark.parametrize("error", ["", "sam3_r140 does not answer: failed to enqueue"], ids=["answered", "an error"])
def test_a_probe_that_comes_back(health, error):
    probe = Probe(health, FRONT)
    health.error = error
    assert probe.open
    health.back.set()
    probe._thread.join(60)
    assert (probe.open, probe.error, probe.look()) == (False, error, "")
