"""The run over a sweep's points: each is written as soon as it is measured, and one that is in the file already is not
measured again, so that an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ensemble.spec import Variant
from perf import record, results
from perf.sweep import metrics
from perf.sweep.analyzer import Analyzer, AnalyzerError
from perf.sweep.points import FRONT, Point
from perf.sweep.target import Target, serving
from perf.sweep.window import Load, check_client, measure

GIVEN_UP = "given up"


def sweep(
    wanted: Sequence[Point],
    found: results.Results,
    output: Path,
    one: Callable[[Point], dict[str, Any]],
    progress: Callable[[Point], None] = lambda point: None,
) -> list[str]:
    """Measures what is not in `found` yet and writes `output` after each of them; returns what went wrong, a sentence
    per point.

    Two failures in a row end it: then the server is gone, not a point bad.
    """
    problems: list[str] = []
    in_a_row = 0
    for point in remaining(wanted, found):
        try:
            found.rows.append(one(point))
            record.write(output, found.data(), table=True)
            in_a_row = 0
        except (AnalyzerError, metrics.MetricsError) as error:
            problems.append(f"{point.label}: {error}")
            in_a_row += 1
            if in_a_row == 2:
                done = f"the {len(found.rows)} finished points are in {output}"
                problems.append(f"{GIVEN_UP}; {done}: run the same command again to go on")
                break
        progress(point)
    return problems


def resume(output: Path, fresh: results.Results, restart: bool) -> results.Results:
    """What is to be gone on with: the rows in `output` if they are of this machine and these versions. Raises
    ResultsError."""
    if restart or not output.exists():
        return fresh
    old = results.read(output)
    for name in ("machine", "versions", "setting"):
        if getattr(old, name) != getattr(fresh, name):
            raise results.ResultsError(
                f"{output} was measured with another {name}: {getattr(old, name)}, now {getattr(fresh, name)}; "
                "give another --output, or --restart to measure all of it again"
            )
    old.command = fresh.command  # which measures all of it
    return old


def measure_all(
    options: argparse.Namespace, load: Load, analyzer: Analyzer, wanted: Sequence[Point], found: results.Results
) -> list[str]:
    """Starts the servers in turn and measures what is not there yet, under a progress bar; returns what went wrong."""
    problems: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, *times, console=Console(stderr=True)) as progress,
        tempfile.TemporaryDirectory() as folder,
    ):
        task = progress.add_task("starting", total=len(wanted))

        def advance(point: Point) -> None:
            progress.update(task, advance=1, description=point.label)

        for group in groups(wanted, options.alone):
            rest = remaining(group, found)
            progress.update(task, advance=len(group) - len(rest))
            if not rest:
                continue
            alone = sorted({p.resolution for p in group}) if options.alone else ()
            with serving(options, alone, sub_models=group[0].target != FRONT) as target:
                one = partial(_row, options, load, analyzer, target, target.fronts(), Path(folder))
                problems += sweep(rest, found, options.output, one, advance)
            if len(problems) > 1 and problems[-1].startswith(GIVEN_UP):
                break
    return problems


def _row(
    options: argparse.Namespace,
    load: Load,
    analyzer: Analyzer,
    target: Target,
    fronts: Mapping[str, Variant],
    folder: Path,
    point: Point,
) -> dict[str, Any]:
    row = measure(analyzer, target, point, fronts, folder, load, options.point_timeout)
    if options.check_client and point.target == FRONT and not point.rate:
        row |= check_client(analyzer, target, point, folder, load, options.point_timeout, options.check_client)
    return row


def groups(wanted: Sequence[Point], alone: bool) -> list[list[Point]]:
    """What one server measures: the points of front models or those of a sub-model, of one resolution where `alone`."""
    found: dict[tuple[str, int], list[Point]] = {}
    for point in wanted:
        found.setdefault((point.target, point.resolution if alone else 0), []).append(point)
    return list(found.values())


def remaining(wanted: Sequence[Point], found: results.Results) -> list[Point]:
    done = {tuple(row.get(f.name) for f in fields(Point)) for row in found.rows}
    return [point for point in wanted if point.key() not in done]
