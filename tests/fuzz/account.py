"""What the commands of this folder share: their options, and the account with which each of them ends."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perf import record

SHOWN = 50
"""Problems that are printed; the account has them all."""


def options_of(name: str, about: str | None, what: str = "cases", count: int = 10_000) -> argparse.ArgumentParser:
    """The parser of `python -m tests.fuzz.NAME`: how many of `what`, by which seed, and where the account goes."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.fuzz.{name}", description=about)
    parser.add_argument(f"--{what}", type=int, default=count, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file for the account, with machine, versions and date")
    return parser


def tried(
    name: str, about: str | None, run: Callable[[int, int], Mapping[str, Any]], argv: Sequence[str] | None
) -> int:
    """A whole command, of which `run` tries so many cases of a seed and returns the account."""
    parser = options_of(name, about, count=1000)
    options = parser.parse_args(argv)
    return end(parser, argv, run(options.cases, options.seed))


def end(parser: argparse.ArgumentParser, argv: Sequence[str] | None, account: Mapping[str, Any]) -> int:
    """Prints the account as the last line of stdout, and its "problems" on stderr; 0 where there are none, else 1."""
    output = parser.parse_args(argv).output
    for problem in account["problems"][:SHOWN]:
        print(problem, file=sys.stderr)
    if output is not None:
        record.write(output, record.new(parser.prog, argv) | account)
    print(json.dumps(account))
    return 1 if account["problems"] else 0
