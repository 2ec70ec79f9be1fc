"""Spoilt configurations are read or refused with a line, never anything else; a fixed number of seeded cases."""

from __future__ import annotations

import json

import pytest

from tests.fuzz.configs import main


@pytest.mark.parametrize("seed", [1, 17])
def test_spoilt_configurations(capsys, seed):
    assert main(["--cases", "200", "--seed", str(seed)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["problems"] == []
    assert told["read"] + told["refused"] == 200
    assert told["read"] > 10
    assert told["refused"] > 75
