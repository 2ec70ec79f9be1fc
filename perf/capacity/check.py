"""How far to trust `sam3-perf capacity`: every measured point beside what a model that was fitted without it predicts.

Compiled packages have their memory in a table of their own: peaks of the whole server beside what its start check
reckons with. The last line also holds the footprint fitted to plans, which `ensemble/server/memory.py` keeps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from perf.capacity.calibrate import LeftOut, leave_one_out
from perf.capacity.evidence import Evidence, gather, peaks
from perf.console import make_parser, refuse, wide_console

TIME_LIMIT, MEMORY_LIMIT, PACKAGES_LIMIT = 0.20, 0.10, 0.05
"""Relative errors above these end the command with status 1."""
EXAMPLES = """examples:
  sam3-perf check                                     the published table of an RTX 5090
  sam3-perf check --sweep perf/results/cpu/sweep.json --table"""


def main(argv: Sequence[str] | None = None) -> int:
    """0: every left-out point within the limits; 1: some are not; 2: nothing could be checked."""
    parser = make_parser("check", __doc__, EXAMPLES)
    parser.add_argument("--table", nargs="*", default=["rtx5090"], help="published tables; default rtx5090")
    parser.add_argument("--sweep", type=Path, nargs="*", default=[], help="files of sam3-perf sweep")
    options = parser.parse_args(argv)
    console, report, good = wide_console(), {}, True
    try:
        for evidence in gather(options.table, options.sweep):
            found = leave_one_out(evidence.samples, evidence.architecture, evidence.bandwidth_gb_s)
            console.print(table(evidence, found))
            errors = worst(found)
            footprint = evidence.calibration().footprint
            names = ("base_mb", "activation_mb")
            fitted = {name: round(getattr(footprint, name), 1) for name in names} if footprint else None
            report[evidence.name] = {**errors, "footprint": fitted}
            good &= (errors["time"] or 0) <= TIME_LIMIT and (errors["memory"] or 0) <= MEMORY_LIMIT
        measured = peaks()
    except ValueError as error:
        return refuse(parser.prog, error)
    console.print(packages(measured))
    packages_error = round(max(abs(mb / row["peak_mb"] - 1) for row, mb in measured), 4)
    good &= packages_error <= PACKAGES_LIMIT
    limits = {"time": TIME_LIMIT, "memory": MEMORY_LIMIT, "packages_memory": PACKAGES_LIMIT}
    print(json.dumps({"largest_errors": report, "packages_memory": packages_error, "limits": limits, "ok": good}))
    return 0 if good else 1


def worst(found: Sequence[LeftOut]) -> dict[str, float | None]:
    """Largest absolute relative errors; memory None where none was measured."""
    memory = [abs(f.memory_error) for f in found if f.memory_error is not None]
    return {
        "time": round(max(abs(f.time_error) for f in found), 4),
        "memory": round(max(memory), 4) if memory else None,
    }


def table(evidence: Evidence, found: Sequence[LeftOut]) -> Table:
    sheet = Table(
        title=f"{evidence.name}: each point predicted by a fit to the others", caption=evidence.samples[0].where
    )
    for column in ("R", "cameras", "classes", "ms/frame", "predicted", "error", "memory MB", "predicted", "error"):
        sheet.add_column(column, justify="right")
    for point in found:
        m = point.measured
        memory = ("-", "-", "-")
        if point.memory_error is not None:
            memory = (f"{m.memory_mb:,.0f}", f"{point.memory_mb:,.0f}", f"{point.memory_error:+.1%}")
        time = (f"{m.ms_per_frame:.1f}", f"{point.ms_per_frame:.1f}", f"{point.time_error:+.1%}")
        sheet.add_row(str(m.resolution), str(m.cameras_served), str(m.classes), *time, *memory)
    return sheet


def packages(measured: Sequence[tuple[dict[str, Any], float]]) -> Table:
    sheet = Table(
        title="memory of this server with compiled packages",
        caption="perf/results/h100/end_to_end.json, which its coefficients come from",
    )
    for column in ("R", "cameras", "frames of each under way", "memory MB", "reckoned with", "error"):
        sheet.add_column(column, justify="right")
    for row, mb in measured:
        load = (str(row[name]) for name in ("resolution", "cameras", "in_flight"))
        sheet.add_row(*load, f"{row['peak_mb']:,.0f}", f"{mb:,.0f}", f"{mb / row['peak_mb'] - 1:+.1%}")
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
