"""A hundred and fifty damaged pictures; thousands are a command's (`tests/fuzz/pictures.py`)."""

from __future__ import annotations

import json

from tests.fuzz import files
from tests.fuzz.picture_files import KINDS
from tests.fuzz.pictures import main

CASES, SEED = 150, 11


def test_damaged_pictures(capsys, tmp_path):
    options = ["--cases", str(CASES), "--seed", str(SEED), "--output", str(tmp_path / "account.json")]
    assert main(options) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["problems"] == []
    assert told["processes_ended"] == 0
    assert sum(told["outcomes"].values()) == CASES
    assert min(told["outcomes"]["answered"], told["outcomes"]["refused"]) > CASES / 10
    assert json.loads((tmp_path / "account.json").read_text()).keys() > {"command", "machine", "versions", *told}


def test_a_case_is_known_by_its_seed_and_number():
    first, again = ([files.make(SEED, number, KINDS) for number in range(40)] for _ in "ab")
    assert first == again
    assert any(not file.spoilt for file in first)
