"""The console of all commands: people read stderr, machines the last line of stdout."""

from rich.console import Console

WIDTH = 118
"""Characters of a table that goes into a file."""


def wide_console() -> Console:
    """On stderr; as wide as the terminal, or `WIDTH` where there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console
