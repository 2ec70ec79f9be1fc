"""What the trials of picture files and of films share: a good file of one of many kinds, of which a seed decides what
is damaged, and the account of what came of each."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fuzz.child import Child, Judge
from tests.fuzz.damage import damaged

Maker = Callable[[random.Random], bytes]
"""A good file, by a seed."""


@dataclass(frozen=True, slots=True)
class File:
    """One case. `kind` is what it was made as, `spoilt` names what is wrong with it."""

    kind: str
    suffix: str
    data: bytes
    spoilt: tuple[str, ...] = ()


def make(seed: int, number: int, kinds: Mapping[str, tuple[str, Maker]]) -> File:
    """The case of that number: one in twenty is good, the others have one to three things wrong."""
    return spoilt(random.Random(f"{seed}/{number}"), kinds)


def spoilt(rng: random.Random, kinds: Mapping[str, tuple[str, Maker]]) -> File:
    """A file of one of `kinds`, a name -> the suffix and the maker."""
    kind = rng.choice(list(kinds))
    suffix, maker = kinds[kind]
    data, wrong = maker(rng), []
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if rng.random() > 0.05 else 0):
        data, how = damaged(rng, data)
        wrong.append(how)
    return File(kind, suffix, data, tuple(wrong))


def run(
    kinds: Mapping[str, tuple[str, Maker]],
    judge: Judge,
    cases: int,
    seed: int,
    most_mb: float,
    whole: Mapping[str, str],
) -> dict[str, Any]:
    """Tries the cases; what came of them, and `problems`, of which there should be none. `most_mb` is the most memory
    that one may take; `whole` says what is to come of whole files of a kind: `answered` where it names none, anything
    where it names nothing."""
    outcomes, problems = {kind: Counter[str]() for kind in sorted(kinds)}, []
    slowest, largest, start = (0.0, ""), (0.0, ""), time.monotonic()
    with Child(judge) as child:
        for number in range(cases):
            file = make(seed, number, kinds)
            name = f"{seed}/{number} {file.kind} {'+'.join(file.spoilt) or 'good'}"
            reply, mb = child.try_out(file)
            outcomes[file.kind][reply.kind] += 1
            slowest, largest = max(slowest, (round(reply.seconds, 2), name)), max(largest, (round(mb), name))
            if problem := reply.problem():
                problems.append(f"{name}: {problem}")
            if mb > most_mb:
                problems.append(f"{name}: took {mb:.0f} MB, expected at most {most_mb:.0f}")
            expected = whole.get(file.kind, "answered") if not file.spoilt else ""
            if expected and reply.kind != expected:
                problems.append(f"{name}: expected to be {expected}, got {reply}")
    return {
        "cases": cases,
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "outcomes": dict(sum(outcomes.values(), Counter())),
        "by_kind": {kind: dict(sorted(counts.items())) for kind, counts in outcomes.items()},
        "slowest": {"seconds": slowest[0], "case": slowest[1]},
        "largest": {"mb": largest[0], "case": largest[1]},
        "processes_ended": child.ended,
        "problems": problems,
    }
