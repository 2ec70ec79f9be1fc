"""Whose turn it is: sums, floors, proportions, motion, and that nobody starves, on simulated servers."""

import copy
import random

import pytest

from clients.fleet.turns import BEHIND_S, STILL_PART, WINDOW_S, Claim, Turns


class Site:
    """Cameras that offer `wishes` frames a second each before a server that answers `capacity` in all."""

    def __init__(self, wishes, claims):
        self.wishes, self.claims, self.turns = wishes, claims, Turns()
        self.got = [0] * len(claims)
        self.next = [0.0] * len(claims)  # when a camera has its next frame
        self.waiting = []
        self.now = 0.0
        self.longest = [0.0] * len(claims)  # between two turns
        self.last = [0.0] * len(claims)

    def run(self, capacity, seconds, burst=1):
        """Gives `burst` turns at a time; counts anew."""
        self.got = [0] * len(self.claims)
        for _ in range(round(capacity * seconds / burst)):
            self.now += burst / capacity
            for _ in range(burst):
                self.one()
        return [got / seconds for got in self.got]

    def one(self):
        for i, claim in enumerate(self.claims):
            if self.next[i] <= self.now and i not in self.waiting:
                self.waiting.append(i)
                self.turns.ask(claim, self.now)
        if self.waiting:
            i = min(self.waiting, key=lambda i: self.turns.order(self.claims[i], self.now))
            self.waiting.remove(i)
            self.turns.give(self.claims[i], self.now)
            self.got[i] += 1
            self.next[i] = self.now if self.wishes[i] == ALWAYS else max(self.next[i] + 1 / self.wishes[i], self.now)
            self.longest[i] = max(self.longest[i], self.now - self.last[i])
            self.last[i] = self.now


ALWAYS = 1e6
"""Frames a second of a camera that always has one."""


def site(*claims, wishes=None):
    return Site(wishes or [ALWAYS] * len(claims), list(claims))


def still(**options):
    return Claim(moving=lambda: False, **options)


@pytest.mark.parametrize(
    ("claims", "rates"),
    [
        ([Claim(), Claim(), Claim()], [10, 10, 10]),
        ([Claim(weight=4), Claim(weight=1), Claim(weight=1)], [20, 5, 5]),
        ([Claim(weight=0.01), Claim(weight=0.02)], [10, 20]),
        ([Claim(), still()], [30 / (1 + STILL_PART), 30 * STILL_PART / (1 + STILL_PART)]),
        ([Claim(weight=1), still(weight=4)], [15, 15]),
        ([Claim(least_fps=6), Claim(), Claim()], [10, 10, 10]),
        ([Claim(least_fps=10), Claim(least_fps=5), Claim(weight=14)], [10, 5, 15]),
        ([still(least_fps=2), Claim(weight=2), Claim(weight=5)], [2, 8, 20]),
        ([Claim(least_fps=40), Claim(least_fps=20), Claim(weight=100)], [20, 10, 0]),
        ([Claim(least_fps=30), Claim(least_fps=0.5), Claim(least_fps=29.5)], [15, 0.25, 14.75]),
    ],
    ids=[
        "alike",
        "weights",
        "small weights",
        "one is still",
        "a still one of four times the weight",
        "a floor below the share",
        "floors above the shares",
        "a floor of a still one",
        "floors above capacity",
        "floors of many sizes above capacity",
    ],
)
@pytest.mark.parametrize("burst", [1, 6], ids=["one by one", "in batches"])
def test_thirty_turns_a_second(claims, rates, burst):
    """Shared among cameras that always have a frame."""
    yard = site(*map(copy.copy, claims))  # the table's own stay as they are
    yard.run(30, 20, burst)
    got = yard.run(30, 100, burst)
    assert sum(got) == pytest.approx(30)
    assert got == pytest.approx(rates, rel=0.1, abs=0.1)


@pytest.mark.parametrize("burst", [1, 15], ids=["one by one", "in batches"])
def test_floors_that_cannot_be_kept_are_told(burst):
    yard = site(Claim(least_fps=40), Claim(least_fps=20))
    yard.run(30, 4 * WINDOW_S, burst)
    assert yard.turns.kept == pytest.approx(0.5, abs=0.05)
    yard.run(120, 2 * WINDOW_S)
    assert yard.turns.kept == 1.0


def test_what_was_missed_under_overload_is_not_made_up_for():
    """Afterwards the weights hold at once: the floors' clock does not run after the hours that it lost."""
    yard = site(Claim(least_fps=20), Claim(least_fps=20), Claim(weight=10))
    yard.run(20, 600)
    yard.run(100, BEHIND_S + 1)
    assert yard.run(100, 10) == pytest.approx([20, 20, 60], rel=0.1)


def test_a_server_that_was_away_is_no_overload():
    yard = site(Claim(least_fps=2), Claim(least_fps=2))
    yard.run(30, 20)
    yard.now += 60
    yard.run(30, 0.1)
    yard.run(30, 2 * WINDOW_S)
    assert yard.turns.kept == 1.0


def test_who_needs_less_leaves_it_to_the_others():
    """No camera gets more than it wishes, whatever its weight, and no turn is lost."""
    yard = site(Claim(weight=10), Claim(), Claim(), wishes=[2, ALWAYS, 5])
    yard.run(30, 10)
    assert yard.run(30, 100) == pytest.approx([2, 23, 5], rel=0.05)


@pytest.mark.parametrize("wish", [35, 45, 60])
def test_a_camera_that_has_to_wait_for_its_next_frame_gets_its_share(wish):
    yard = site(Claim(weight=5), *(Claim() for _ in range(7)), wishes=[wish, *[ALWAYS] * 7])
    yard.run(100, 10)
    assert yard.run(100, 50)[0] == pytest.approx(min(wish, 500 / 12), rel=0.1)


def test_nothing_is_saved_up():
    """A camera that was quiet for an hour gets its share from then on, neither more nor late."""
    yard = site(Claim(), Claim(least_fps=1), Claim())
    yard.next[0] = yard.next[1] = 3600.0
    yard.run(30, 3600)
    assert yard.got[2] == pytest.approx(3600 * 30, abs=2)
    assert yard.run(30, 1) == pytest.approx([10, 10, 10], abs=1.5)


def test_movement_counts_at_once():
    """A camera that has been still waits no longer than one round of the others once something moves."""
    moves = []
    quiet = Claim(moving=lambda: bool(moves))
    yard = site(*(Claim() for _ in range(15)), quiet)
    yard.run(30, 20)
    moves.append(1)
    asked = yard.now
    while yard.last[15] <= asked:
        yard.run(30, 1 / 30)
    assert yard.now - asked <= 16 / 30 + 1e-6


def test_a_floor_is_an_interval():
    """A turn every 1 / least_fps seconds, even before a camera of a hundred times the weight."""
    yard = site(Claim(weight=0.1, least_fps=2), Claim(weight=10), Claim(weight=10))
    yard.run(30, 60)
    assert yard.longest[0] <= 0.5 + 2 / 30


def fair(claims, wishes, capacity):
    """What each should get: as much as all others for its weight, but no less than its floor and no more than it
    wishes; of the floors an equal part, where they are more than there is."""
    floors = [min(claim.least_fps, wish) for claim, wish in zip(claims, wishes, strict=True)]
    if sum(floors) >= capacity:
        return [floor * capacity / sum(floors) for floor in floors]

    def at(level):
        each = zip(claims, floors, wishes, strict=True)
        return [min(max(claim.counts * level, floor), wish) for claim, floor, wish in each]

    low, high = 0.0, capacity / min(claim.counts for claim in claims)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < capacity else (low, middle)
    return at(low)


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture(seed):
    """Random cameras get what is fair; no turn is lost while somebody waits, and nobody starves."""
    rng = random.Random(seed)
    capacity = rng.uniform(5, 100)
    claims = [
        Claim(
            least_fps=rng.choice([0, 0, rng.uniform(0.1, 5)]),
            weight=rng.choice([1, 1, rng.uniform(0.1, 10)]),
            moving=(lambda moving: lambda: moving)(rng.random() < 0.5),
        )
        for _ in range(rng.randint(2, 24))
    ]
    wishes = [rng.choice([ALWAYS, 10, max(2, claim.least_fps)]) for claim in claims]
    yard = Site(wishes, claims)
    yard.run(capacity, 60)
    got = yard.run(capacity, 200)
    assert sum(got) == pytest.approx(min(capacity, sum(wishes)), rel=0.02)
    floors = sum(claim.least_fps for claim in claims)
    for one, due, wish, claim in zip(got, fair(claims, wishes, capacity), wishes, claims, strict=True):
        assert one <= 1.01 * wish + 0.02
        assert one == pytest.approx(due, rel=0.2, abs=0.1)  # turns are whole
        assert one >= 0.93 * min(1.0, capacity / max(floors, 1e-9)) * claim.least_fps - 0.02
        assert one > 0 or floors >= 0.95 * capacity
