"""The file of a sweep: rows with their versions and their hardware go in and out, as JSON (all of it) and CSV (the
rows).

Both are replaced whole after every point, so that an interruption leaves complete files; a CSV that broke all the same
is read up to the break.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ensemble.server.gpu import gpus

PACKAGES = ("nvidia-pytriton", "tritonclient", "onnxruntime-gpu", "onnxruntime", "torch", "numpy")


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


def here(command: str, **versions: str) -> Results:
    """An empty sweep of this machine."""
    return Results(command, date.today().isoformat(), package_versions() | versions, machine())


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores that may be used, memory, GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory), **gpu()}


def gpu() -> dict[str, Any]:
    """Name and memory (MB) of the first visible GPU; empty where there is none."""
    found = gpus()
    return {"gpu": found[0].name, "gpu_memory_mb": round(found[0].total_mb)} if found else {}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def write(results: Results, path: Path) -> None:
    """`path` (JSON) and, beside it, the same rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {name: getattr(results, name) for name in ("command", "date", "versions", "machine", "setting", "rows")}
    _replace(path, json.dumps(data, indent=1) + "\n")
    columns = list(dict.fromkeys(name for row in results.rows for name in row))
    table = path.with_suffix(".csv.part")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(results.rows)
    os.replace(table, path.with_suffix(".csv"))


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(".json.part")
    part.write_text(text)
    os.replace(part, path)


def read(path: Path) -> Results:
    """A sweep's JSON or CSV. A CSV that breaks off in a row keeps the rows before it and says so in `note`. Raises
    ResultsError."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ResultsError(
            f"cannot read {path} ({error.strerror}); write one with sam3-perf sweep --output {path}"
        ) from None
    if path.suffix == ".csv":
        return _read_csv(path, text)
    try:
        data = json.loads(text)
        return Results(**{name: data[name] for name in ("command", "date", "versions", "machine", "setting", "rows")})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path} is no complete file of sam3-perf sweep ({type(error).__name__}: {error}); "
            f"read the rows that are in {path.with_suffix('.csv')}, or measure again"
        ) from None


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


def command_line(name: str, argv: Sequence[str] | None) -> str:
    return " ".join([f"sam3-perf {name}", *(argv if argv is not None else sys.argv[2:])])
