"""A few hundred wrong requests at the session's server, while a camera beside them gets all its answers; thousands more
are a command's (`tests/fuzz/requests.py`)."""

import pytest

from tests.fuzz import requests
from tests.fuzz.cases import SPOIL, make
from tests.fuzz.reply import Reply

CASES, SEED = 400, 24


def test_a_case_is_known_by_its_seed_and_number():
    cases = [make(SEED, number, "sam3_r140") for number in range(CASES)]
    again = [make(SEED, number, "sam3_r140") for number in range(CASES)]
    assert [(c.spoilt, repr(c.tensors), c.parameters) for c in cases] == [
        (c.spoilt, repr(c.tensors), c.parameters) for c in again
    ]
    assert {name for case in cases for name in case.spoilt} == {spoil.__name__.strip("_") for spoil in SPOIL}
    assert any(not case.spoilt for case in cases)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply("answered", "", 0.1), ""),
        (Reply("refused", "boxes[0]: expected x0 < x1", 0.1), ""),
        (Reply("failed", "Unable to parse 'data': a number at line 3", 0.1), ""),
        (Reply("silent", "", 60.0), "silent: "),
        (Reply("nobody", "Connection refused", 0.1), "nobody: Connection refused"),
        (Reply("failed", "TypeError: unsupported operand", 0.1), "a program's words (TypeError)"),
        (Reply("failed", 'File "front.py"', 0.1), "a program's words (.py)"),
        (Reply("refused", "ab" * 20_000, 0.1), "40000 characters"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else value.kind,
)
def test_what_is_a_problem(reply, problem):
    assert reply.problem().startswith(problem)
    assert bool(reply.problem()) is bool(problem)


@pytest.mark.server
def test_wrong_requests_hurt_nobody(server):
    account = requests.run(server, ["sam3_r252", "sam3_r140"], CASES, SEED)
    assert account["problems"] == []
    assert account["camera"]["right"] == account["camera"]["sent"] > 5
    assert account["same_process"]
    answers = account["answers"]
    assert sum(answers.values()) == CASES
    for protocol in ("grpc", "http"):
        assert answers[f"{protocol} answered"] > 5
        assert answers[f"{protocol} refused"] > CASES / 10
