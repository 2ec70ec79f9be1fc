"""Files of results: complete after every write, and read up to where they break."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf import record, results
from perf.results import Results

ROWS = [{"target": "front", "resolution": r, "cameras": c, "fps": 10.0 * c} for c in (1, 4) for r in (252, 140)]
CPUINFO = "processor\t: 0\nmodel name\t: A processor @ 2 GHz\nflags\t\t: fpu avx2 {flags}\n"


def test_rows_come_back_from_json_and_csv(tmp_path):
    found = Results(**record.new("sam3-perf sweep", ["--cameras", "1"]), rows=ROWS)
    record.write(tmp_path / "sweep.json", found.data(), table=True)
    again = results.read(tmp_path / "sweep.json")
    assert again == found
    assert again.command == "sam3-perf sweep --cameras 1"
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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param('{"rows": [', "is no complete file of sam3-perf", id="broken"),
        pytest.param('{"rows": []}', "is no complete file of sam3-perf", id="of no machine"),
        pytest.param(None, "cannot read", id="not there"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(results.ResultsError, match=sentence):
        results.load(tmp_path / "a.json")


def test_every_published_file_is_read():
    """Those that name no machine are older than that."""
    folder = Path(results.__file__).parent / "results"
    files = [path for path in folder.glob("*/*.json") if "machine" in json.loads(path.read_text())]
    assert len(files) > 5
    for path in files:
        assert results.load(path)["machine"], path
    for name, gpu in (("h200", "NVIDIA H200"), ("h100", "NVIDIA H100 80GB HBM3")):
        assert results.load(folder / name / "end_to_end.json")["machine"]["gpu"] == gpu


@pytest.mark.parametrize(
    ("flags", "sets"),
    [
        pytest.param("sse2", "avx2", id="AVX2 alone"),
        pytest.param("avx512f avx512_vnni amx_tile amx_int8", "avx2 avx512 vnni amx", id="everything"),
        pytest.param("avx_vnni", "avx2 vnni", id="VNNI without AVX-512"),
    ],
)
def test_a_processor_is_named_with_its_instruction_sets(tmp_path, flags, sets):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags=flags) * 2)
    expected = {"processor": "A processor @ 2 GHz", "instruction_sets": sets}
    assert record.processor(tmp_path / "cpuinfo") == expected


def test_a_processor_of_another_kind_has_none_of_them(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert record.processor(tmp_path / "cpuinfo")["instruction_sets"] == "none of these"
    assert record.processor(tmp_path / "nothing")["processor"]


def test_what_is_published_is_written_and_is_the_last_line(tmp_path, capsys):
    data = record.new("sam3-perf bench some", ["--name", "two words"], cuda="13.0") | {"rows": ROWS}
    record.publish(tmp_path / "new" / "some.json", data, "some rows", ("resolution", "fps"))
    written = capsys.readouterr()
    assert json.loads(written.out.splitlines()[-1]) == data == json.loads((tmp_path / "new" / "some.json").read_text())
    assert data["command"] == "sam3-perf bench some --name 'two words'"
    assert data["versions"]["cuda"] == "13.0"
    assert "some rows" in written.err
    assert "target" not in written.err, "of the columns two were asked for"
