"""The rows of one benchmark go in; a table for people on stderr, a file where one was asked for, and one JSON line on
stdout come out.

What a figure needs to be believed is added here, once: the command, the date and the machine.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.table import Table

from perf.console import wide_console


def publish(
    name: str,
    argv: Sequence[str] | None,
    title: str,
    rows: Sequence[dict[str, Any]],
    output: Path | None,
    **fields: Any,
) -> None:
    """`name` is the module that was run and `argv` its arguments (None: the process's own); the first column of `rows`
    is text; `fields` go before them."""
    table = Table(title=title)
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(str, row.values()))
    wide_console().print(table)
    result = {
        "command": " ".join([f"python -m {name}", *(sys.argv[1:] if argv is None else argv)]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        **fields,
        "rows": list(rows),
    }
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
