"""Waiting for what must come: it ends when it is there, and when it cannot come any more."""

import threading

import pytest

from tests.ensemble.waiting import until


def test_what_comes_is_waited_for():
    looked = []
    until(lambda: looked.append(1) or len(looked) == 3)
    assert len(looked) == 3


def test_a_thread_that_has_ended_brings_nothing():
    thread = threading.Thread(target=lambda: None, name="reading")
    thread.start()
    thread.join()
    with pytest.raises(AssertionError, match="it cannot come: reading has ended"):
        until(lambda: False, thread)
    until(lambda: True, thread)
