"""The one reader of result files, and a sweep's as an object."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS = ("command", "date", "versions", "machine", "setting", "rows")


class ResultsError(ValueError):
    """A file of results that cannot be read or gone on with; the message names it and says what next."""


@dataclass(slots=True)
class Results:
    """One sweep. `rows` are flat records: the point's settings and its figures."""

    command: str = ""
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""  # said when the file was read: rows that were lost

    @property
    def where(self) -> str:
        """The hardware in a few words."""
        return str(self.machine.get("gpu") or f"{self.machine.get('cores', '?')} CPU cores")

    def data(self) -> dict[str, Any]:
        """What `perf.record.write` writes."""
        return {name: getattr(self, name) for name in FIELDS}


def load(path: Path) -> dict[str, Any]:
    """Any JSON file of results. `machine` describes the hardware, which older files call `hardware`. Raises
    ResultsError."""
    try:
        data = json.loads(_text(path))
        return data | {"machine": data.get("hardware", data["machine"])}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is no complete file of sam3-perf ({_cause(error)}); measure again") from None


def read(path: Path) -> Results:
    """A sweep's JSON or CSV. A CSV that breaks off in a row keeps the rows before it and says so in `note`. Raises
    ResultsError."""
    text = _text(path)
    if path.suffix == ".csv":
        return _read_csv(path, text)
    try:
        data = json.loads(text)
        return Results(**{name: data[name] for name in FIELDS})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path} is no complete file of sam3-perf sweep ({_cause(error)}); "
            f"read the rows that are in {path.with_suffix('.csv')}, or measure again"
        ) from None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ResultsError(
            f"cannot read {path} ({error.strerror}); write one with sam3-perf sweep --output {path}"
        ) from None


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _read_csv(path: Path, text: str) -> Results:
    lines = text.splitlines()
    if not lines or not {"target", "resolution", "fps"} <= set(lines[0].split(",")):
        raise ResultsError(
            f"{path} does not begin with a sweep's column names; expected the CSV that sam3-perf sweep writes"
        )
    columns, rows = lines[0].split(","), []
    whole = lines[1:] if text.endswith("\n") else lines[1:-1]
    for cells in csv.reader(whole):
        if len(cells) == len(columns):
            rows.append({name: _number(cell) for name, cell in zip(columns, cells, strict=True)})
    lost = len(lines) - 1 - len(rows)
    note = f"{path}: {lost} incomplete row{'s' if lost != 1 else ''} left out" if lost else ""
    return Results(rows=rows, machine={}, note=note)


def _number(cell: str) -> Any:
    try:
        number = float(cell)
    except ValueError:
        return cell
    return int(number) if number.is_integer() and "." not in cell else number
