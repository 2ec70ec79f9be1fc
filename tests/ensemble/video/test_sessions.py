import pytest

from ensemble.request import RequestError
from ensemble.video.follow import Rules
from ensemble.video.request import Asked
from ensemble.video.sessions import Sessions
from tests.clock import Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sessions(clock):
    return Sessions("sam3_video_r28", slots=10, slot_bytes=2**20, clock=clock)


def begin(sessions, number, most=4):
    return sessions.begin(Asked(number, start=True, max_objects=most), Rules(max_objects=most))


def test_a_session_has_all_its_slots_from_the_start(sessions):
    first, second = begin(sessions, 1), begin(sessions, 2)
    assert len(first.slots) == len(second.slots) == 4
    assert not set(first.slots) & set(second.slots)
    assert (sessions.used_slots, len(sessions)) == (8, 2)


def test_a_full_bank_is_refused_with_figures(sessions):
    begin(sessions, 1)
    begin(sessions, 2)
    with pytest.raises(
        RequestError, match=r"holds 2 sessions of 4 objects in 10 MB and has room for 2 .*--video-memory"
    ):
        begin(sessions, 3)
    assert begin(sessions, 4, most=2).slots
    assert sessions.over["refused"] == 1


def test_slots_of_objects_are_those_of_their_session(sessions):
    session = begin(sessions, 1)
    taken = [session.take(n) for n in (11, 12, 13, 14)]
    assert sorted(taken) == sorted(session.slots)
    assert session.take(12) == taken[1]
    del session.taken[13]
    assert session.take(15) == taken[2]


@pytest.mark.parametrize("again", ["end", "begin"])
def test_slots_come_back(sessions, again):
    begin(sessions, 1, most=10)
    if again == "end":
        sessions.end(1)
        assert sessions.over == {"ended": 1}
    assert begin(sessions, 1, most=10).slots
    assert sessions.over["restarted"] == (again == "begin")


def test_an_idle_session_is_over_by_its_own_clock(sessions, clock):
    """As soon as a frame of another comes that was sent after its time, or somebody needs its slots."""
    for number in (1, 2, 3):
        begin(sessions, number, most=3)
    for now in (30.0, 60.0, 61.0):
        clock.now = now
        sessions.answered([sessions.find(3)])
        assert len(sessions) == 3
    sessions.find(2)
    clock.now = 62.0
    sessions.answered([sessions.find(3)])
    with pytest.raises(RequestError, match=r"knows none of id 1: it .* sent no frame for 60 s"):
        sessions.find(1)
    assert (sessions.used_slots, dict(sessions.over)) == (6, {"expired": 1})
    clock.now = 130.0
    assert begin(sessions, 4, most=10).slots
    assert dict(sessions.over) == {"expired": 3}


def test_a_frame_that_takes_long_does_not_end_sessions(sessions, clock):
    """Neither its own, nor those that were answered with it, nor whoever waits behind it."""
    first, second, third = (begin(sessions, number, most=2) for number in (1, 2, 3))
    for _ in range(5):
        for batch in ((first, second), (third,)):
            for session in batch:
                assert sessions.find(session.number) is session
            clock.now += 100.0
            sessions.answered(batch)
    assert not sessions.over


def test_a_thousand_abandoned_sessions_leave_every_slot_free(sessions, clock):
    for number in range(1, 1001):
        clock.now += 100.0
        begin(sessions, number, most=10)
    clock.now += 100.0
    assert sorted(begin(sessions, 5000, most=10).slots) == list(range(10))
    assert (len(sessions), sessions.over["expired"]) == (1, 1000)


def test_an_unknown_session_is_told_what_to_do(sessions):
    with pytest.raises(RequestError, match=r"knows none of id 99.*start flag, and with the last masks as seed_masks"):
        sessions.find(99)


def test_ending_what_is_not_there_does_nothing(sessions):
    sessions.end(99)
    assert not sessions.over


def test_what_failed_is_undone(sessions):
    session = begin(sessions, 1)
    session.take(1)
    before = session.snapshot()
    session.take(2)
    session.follower.rules = Rules(max_objects=1)
    session.names = (b"x",)
    session.restore(before)
    assert (list(session.taken), session.names, session.follower.rules.max_objects) == ([1], (), 4)
