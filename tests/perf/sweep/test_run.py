"""The run over a sweep's points: gone on with where it stopped, and only where it belongs."""

from __future__ import annotations

import json

import pytest

from perf import record
from perf.results import Results, ResultsError
from perf.sweep.analyzer import AnalyzerError
from perf.sweep.points import Point, points
from perf.sweep.run import resume, sweep

WANTED = points([252, 140], [1, 4], [1])


def fresh() -> Results:
    return Results(**record.new("sam3-perf sweep", []))


def row_of(point: Point) -> dict:
    return {name: getattr(point, name) for name in Point.__slots__} | {"fps": 10.0 * point.cameras}


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    output, measured = tmp_path / "sweep.json", []

    def until_the_server_dies(point: Point) -> dict:
        if len(measured) == 2:
            raise AnalyzerError("the server does not answer")
        measured.append(point)
        return row_of(point)

    problems = sweep(WANTED, resume(output, fresh(), restart=False), output, until_the_server_dies)
    assert "the 2 finished points are in" in problems[-1]
    assert len(problems) == 3, "two points that failed, and the sentence that ends it"

    def all_well(point: Point) -> dict:
        measured.append(point)
        return row_of(point)

    assert sweep(WANTED, resume(output, fresh(), restart=False), output, all_well) == []
    assert measured == WANTED, "nothing is measured twice"
    assert [r["resolution"] for r in json.loads(output.read_text())["rows"]] == [252, 140, 252, 140]


def test_another_machine_does_not_go_on(tmp_path):
    output = tmp_path / "sweep.json"
    other = fresh()
    other.machine = {"gpu": "another card"}
    record.write(output, other.data(), table=True)
    with pytest.raises(ResultsError, match=r"another machine.*--restart"):
        resume(output, fresh(), restart=False)
    assert resume(output, fresh(), restart=True).rows == []
