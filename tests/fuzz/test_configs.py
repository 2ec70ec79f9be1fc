"""Spoilt configurations are read or refused with a line, never anything else; a fixed number of seeded cases."""

from __future__ import annotations

import json

import pytest

from tests.fuzz.configs import main


@pytest.mark.parametrize("seed", [1, 2])
def test_spoilt_configurations(capsys, seed):
    assert main(["--cases", "150", "--seed", str(seed)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["problems"] == []
    assert told["read"] + told["refused"] == 150
    assert min(told["read"], told["refused"]) > 0
