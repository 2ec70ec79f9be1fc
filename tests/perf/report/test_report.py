"""The report: self-contained, with every picture the rows allow, and tables whose cells are the rows' figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ensemble.spec import STAGES
from perf import record, results, tables
from perf.report import cli as report
from perf.report import plots

COMMON = {"target": "front", "rate": 0.0, "protocol": "grpc", "queue_ms": 5.0, "gpu_memory_mb": 0.0, "batch": 1}


def made_up(scale: float = 1.0) -> results.Results:
    """A sweep of two resolutions, 1 and 8 cameras, 1 and 4 classes, whose throughput is easy to tell."""
    sweep = results.Results(**record.new("sam3-perf sweep", []))
    for resolution, factor in ((252, 1.0), (140, 3.0)):
        for cameras in (1, 8):
            for classes in (1, 4):
                fps = scale * factor * 10 * (1.5 if cameras == 8 else 1) / classes
                mean = 1e3 * cameras / fps
                row = COMMON | {
                    "resolution": resolution,
                    "cameras": cameras,
                    "classes": classes,
                    "fps": fps,
                    "mean_ms": mean,
                }
                row |= {"p50_ms": mean, "p95_ms": 1.2 * mean, "p99_ms": 1.3 * mean, "mean_batch": float(cameras)}
                row |= {f"stage_{stage}_ms": 0.1 * mean for stage in STAGES} | {"stage_total_ms": 0.7 * mean}
                sweep.rows.append(row | {"server_memory_mb": 500.0 + cameras})
    return sweep


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict]:
    """Exit status and the JSON of the last line of standard output."""
    status = report.main(argv)
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_the_page_holds_everything(tmp_path: Path, capsys):
    record.write(tmp_path / "sweep.json", made_up().data(), table=True)
    status, last = run(capsys, str(tmp_path / "sweep.json"), "--output", str(tmp_path / "out"))
    assert status == 0
    pictures = [name for name in last["files"] if name.endswith(".png")]
    assert {p.removeprefix("sweep-") for p in pictures} == {
        "throughput-latency.png",
        "stage-breakdown.png",
        "cost.png",
        "speed-up.png",
        "memory.png",
        "accuracy.png",
    }
    for name in pictures:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "no other file and no network"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 252 | 18 | 2.5 | 2.50 | 400 | 480 | 1.0 | 501 |" in text
    assert "| 140 | 300% | 300% |" in text


def test_two_sweeps_side_by_side(tmp_path: Path, capsys):
    record.write(tmp_path / "before.json", made_up().data())
    record.write(tmp_path / "after.json", made_up(scale=2.0).data())
    status, _ = run(
        capsys, *(str(tmp_path / f"{n}.json") for n in ("before", "after")), "--output", str(tmp_path / "out")
    )
    assert status == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "after against before" in text
    assert "| 252 | 1 | 8 | 15.0 | 30.0 | 2.00 | 0.50 |" in text


def test_a_csv_that_broke_off_is_shown_up_to_the_break(tmp_path: Path, caplog):
    record.write(tmp_path / "sweep.json", made_up().data(), table=True)
    table = tmp_path / "sweep.csv"
    table.write_text(table.read_text()[:-40])
    assert report.main([str(table), "--output", str(tmp_path / "out")]) == 0
    assert "1 incomplete row left out" in caplog.text


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        pytest.param(None, "write one with sam3-perf sweep --output", id="no file"),
        pytest.param([], "has no finished point of a front model", id="nothing finished"),
    ],
)
def test_nothing_to_show_is_a_sentence(tmp_path: Path, capsys, rows, sentence):
    path = tmp_path / "sweep.json"
    if rows is not None:
        record.write(path, results.Results(**record.new("sam3-perf sweep", [])).data())
    status, last = run(capsys, str(path), "--output", str(tmp_path / "out"))
    assert status == 2
    assert sentence in last["error"]


def test_the_parts_of_a_bar_add_up_to_the_round_trip():
    row = made_up().rows[0]
    total = sum(plots.stage_ms(row, name) for name in ("queue", "transport")) + row["stage_total_ms"]
    assert total == pytest.approx(row["mean_ms"])


def test_of_several_turns_the_fastest_is_shown():
    rows = []
    for turn, scale in enumerate((1.0, 3.0, 2.0), start=1):
        rows += [row | {"turn": turn} for row in made_up(scale).rows]
    shown = tables.front_rows(rows)
    assert {row["turn"] for row in shown} == {2}
    assert len(shown) == len(made_up().rows)
    assert tables.repeatability(rows) == 0.0, "all resolutions were faster together"
    rows[-1] = rows[-1] | {"fps": 1.1 * rows[-1]["fps"]}
    assert tables.repeatability(rows) == pytest.approx(0.1)
    assert tables.repeatability(made_up().rows) is None


def test_names_of_sweeps_differ():
    assert report.names_of([Path("a/cpu.json"), Path("b/gpu.json")]) == ["cpu", "gpu"]
    assert report.names_of([Path("cpu/sweep.json"), Path("h200/sweep.json")]) == ["cpu-sweep", "h200-sweep"]
    assert len(set(report.names_of([Path("sweep.json"), Path("sweep.json")]))) == 2


def test_resolutions_that_only_one_sweep_has_are_left_out():
    sweep = made_up()
    fewer = [r for r in sweep.rows if r["resolution"] == 140]
    assert {row[0] for row in tables.ratios(sweep.rows, fewer, ("a", "b")).rows} == {"140"}


def test_memory_that_an_earlier_load_took_is_not_shown_as_a_points_own():
    """Allocators give nothing back: after eight cameras, one camera has the memory of eight."""
    rows = made_up().rows
    for row, memory in zip(rows, (100.0, 110.0, 300.0, 400.0) * 2, strict=True):
        row["gpu_memory_mb"] = memory
    order = [(1, 1), (1, 4), (8, 1), (8, 4)]  # cameras and classes, in the order of measuring
    assert [(row["cameras"], row["classes"]) for row in rows] == order * 2
    assert tables.own_memory(rows) == {id(row) for row in rows}
    backwards = rows[::-1]
    assert tables.own_memory(backwards) == {id(row) for row in backwards if (row["cameras"], row["classes"]) == (8, 4)}
    assert "| 252 | 18 | 2.5 | 2.50 | 400 | 480 | 1.0 | ≤ 110 |" in tables.streams(backwards, 1, 4).markdown()
    assert "| 252 | 18 | 2.5 | 2.50 | 400 | 480 | 1.0 | 110 |" in tables.streams(rows, 1, 4).markdown()
    shown = [[len(line.get_xdata()) for line in plots.memory(part).axes[0].lines] for part in (rows, backwards)]
    assert shown == [[2, 2, 2, 2], [1, 1]]
