"""The help of command lines: descriptions and examples keep their lines."""

from __future__ import annotations

import argparse


def make_parser(prog: str, about: str | None, examples: str = "") -> argparse.ArgumentParser:
    """A parser whose help shows `about` and `examples` as they are written."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=prog, description=about, epilog=examples, formatter_class=raw)
