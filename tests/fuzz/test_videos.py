"""Some damaged films; thousands are a command's (`tests/fuzz/videos.py`)."""

from __future__ import annotations

import json
import random

import pytest

from tests.fuzz import files
from tests.fuzz.films import KINDS
from tests.fuzz.parts import parts
from tests.fuzz.videos import main

CASES, SEED = 80, 5


def test_damaged_films(capsys):
    assert main(["--cases", str(CASES), "--seed", str(SEED)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["problems"] == []
    assert told["processes_ended"] == 0
    assert sum(told["outcomes"].values()) == CASES
    assert min(told["outcomes"]["answered"], told["outcomes"]["refused"]) > CASES / 10


def test_all_kinds_and_most_ways_of_damage_come_up():
    cases = [files.make(SEED, number, {k: v for k, v in KINDS.items() if k != "large"}) for number in range(400)]
    assert {case.kind for case in cases} == KINDS.keys() - {"large"}
    assert len({how for case in cases for how in case.spoilt}) > 15


@pytest.mark.parametrize("kind", ["MP4", "MP4 in pieces", "Matroska", "AVI", "transport stream", "raw H.264"])
def test_the_parts_of_a_film_are_found(kind):
    """They lie in the file and hold nearly all of it."""
    data = KINDS[kind][1](random.Random(SEED))
    found = parts(data)
    assert len(found) > 10
    assert all(0 <= part.start < part.body <= part.end <= len(data) for part in found)
    assert sum(part.end - part.start for part in found) >= 0.9 * len(data)
