"""Files of a sweep: complete after every point, gone on with only where they belong, read up to where they break."""

from __future__ import annotations

import json

import pytest

from perf import results
from perf.sweep.analyzer import AnalyzerError
from perf.sweep.points import Point, points
from perf.sweep.sweep import resume, sweep

WANTED = points([252, 140], [1, 4], [1])


def row_of(point: Point) -> dict:
    return {name: getattr(point, name) for name in Point.__slots__} | {"fps": 10.0 * point.cameras}


def test_rows_come_back_from_json_and_csv(tmp_path):
    found = results.here("sam3-perf sweep --cameras 1")
    found.rows = [row_of(point) for point in WANTED]
    results.write(found, tmp_path / "sweep.json")
    again = results.read(tmp_path / "sweep.json")
    assert again == found
    assert again.versions["numpy"].startswith("1.")
    assert again.machine["cores"] >= 1
    table = results.read(tmp_path / "sweep.csv")
    assert [r["fps"] for r in table.rows] == [r["fps"] for r in found.rows]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.csv", "sweep.json"], "no half-written file stays"


def test_a_half_written_csv_keeps_its_whole_rows(tmp_path):
    path = tmp_path / "sweep.csv"
    path.write_text("target,resolution,fps\nfront,252,8.5\nfront,140,21.25\nfront,1")
    found = results.read(path)
    assert [r["fps"] for r in found.rows] == [8.5, 21.25]
    assert "1 incomplete row left out" in found.note


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        pytest.param("a.json", '{"rows": [', "no complete file of sam3-perf sweep", id="broken JSON"),
        pytest.param("a.json", "{}", "no complete file", id="some other JSON"),
        pytest.param("a.csv", "x,y\n1,2\n", "does not begin with a sweep's column names", id="some other CSV"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(results.ResultsError, match=sentence):
        results.read(tmp_path / name)


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    output, measured = tmp_path / "sweep.json", []

    def until_the_server_dies(point: Point) -> dict:
        if len(measured) == 2:
            raise AnalyzerError("the server does not answer")
        measured.append(point)
        return row_of(point)

    fresh = results.here("sam3-perf sweep")
    problems = sweep(WANTED, resume(output, fresh, restart=False), output, until_the_server_dies)
    assert "the 2 finished points are in" in problems[-1]
    assert len(problems) == 3, "two points that failed, and the sentence that ends it"

    def all_well(point: Point) -> dict:
        measured.append(point)
        return row_of(point)

    assert sweep(WANTED, resume(output, results.here("sam3-perf sweep"), restart=False), output, all_well) == []
    assert measured == WANTED, "nothing is measured twice"
    assert [r["resolution"] for r in json.loads(output.read_text())["rows"]] == [252, 140, 252, 140]


def test_another_machine_does_not_go_on(tmp_path):
    output = tmp_path / "sweep.json"
    other = results.here("sam3-perf sweep")
    other.machine = {"gpu": "another card"}
    results.write(other, output)
    with pytest.raises(results.ResultsError, match=r"another machine.*--restart"):
        resume(output, results.here("sam3-perf sweep"), restart=False)
    assert resume(output, results.here("sam3-perf sweep"), restart=True).rows == []
