"""What all commands share: their parser, console and log lines, how an error ends one, and sizes of frames.

People read stderr; machines read the last line of stdout, which is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys

from rich.console import Console

from clients import console

WIDTH = 118
"""Characters of a table that goes into a file."""
PACKAGES = ("perf", "ensemble", "export", "clients", "demo")
"""Whose progress is shown; of other packages only warnings are."""


def make_parser(verb: str, about: str | None, examples: str = "") -> argparse.ArgumentParser:
    """A parser for `sam3-perf VERB` whose help keeps the lines of `about` and `examples` as they are."""
    return console.make_parser(f"sam3-perf {verb}", about, examples)


def refuse(prog: str, error: Exception | str) -> int:
    """Says on stderr and as JSON on stdout why a command cannot do what it was asked; returns its exit status, 2."""
    print(f"{prog}: {error}", file=sys.stderr)
    print(json.dumps({"error": str(error)}))
    return 2


def wide_console() -> Console:
    """On stderr; as wide as the terminal, or `WIDTH` where there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console


class _Stderr(logging.Handler):
    """Looks `sys.stderr` up for every line, because a progress bar replaces it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def show_log() -> None:
    """Log lines of this project from INFO on, and warnings of everything else, go to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Stderr()])
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)


def size(text: str) -> tuple[int, int]:
    """`1920x1080` as width and height. Raises ValueError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise ValueError(f"a size must be WIDTHxHEIGHT, got {text!r}; write for example 1920x1080")
    return int(match[1]), int(match[2])
