"""Ports that were chosen, and are not listened on yet, are not chosen again."""

from __future__ import annotations

import pytest

from ensemble.server import ports

LOOPBACK = "127.0.0.1"


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    free = ports.choose_ports(LOOPBACK, (0, 0, 0))
    assert len(set(free)) == 3
    offered = iter([free[0], free[1], free[2]])  # what the system may well give again
    monkeypatch.setattr(ports, "_bound", lambda *_: next(offered))
    assert ports.choose_ports(LOOPBACK, (0,), free[:2]) == [free[2]]


def test_a_port_that_was_asked_for_is_had_although_it_was_chosen_before():
    (port,) = ports.choose_ports(LOOPBACK, (0,))
    assert ports.choose_ports(LOOPBACK, (port,), {port}) == [port]
