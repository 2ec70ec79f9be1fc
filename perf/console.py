"""What all commands share: the console (people read stderr, machines the last line of stdout) and arguments of more
than one number."""

import re

from rich.console import Console

WIDTH = 118
"""Characters of a table that goes into a file."""


def wide_console() -> Console:
    """On stderr; as wide as the terminal, or `WIDTH` where there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def size(text: str) -> tuple[int, int]:
    """`1920x1080` as width and height. Raises ValueError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise ValueError(f"a size must be WIDTHxHEIGHT, got {text!r}; write for example 1920x1080")
    return int(match[1]), int(match[2])
