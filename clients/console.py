"""What command lines say: help that keeps its lines, results that survive a reader who has gone."""

from __future__ import annotations

import argparse
import os
import sys


def make_parser(prog: str, about: str | None, examples: str = "") -> argparse.ArgumentParser:
    """A parser whose help shows `about` and `examples` as they are written."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=prog, description=about, epilog=examples, formatter_class=raw)


def say(*lines: str) -> bool:
    """Prints lines to stdout; whether they arrived. A closed pipe or a full disk behind it must not end what runs, so
    nothing more is printed then."""
    if not lines:
        return True
    try:
        print(*lines, sep="\n", flush=True)
        return True
    except OSError:
        # what Python has not been able to write would be tried again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
