"""Ids of the tracker and of ByteTrack on the same drawn video."""

from pathlib import Path

import numpy as np
import pytest

from export.tiny.video.evaluate import held_out_video
from export.tiny.video.identity import FrameOverlap, identity
from perf.bench.tracking import figures, main, measure, names_of, paired
from perf.bench.tracking_speed import fill, speeds


def test_a_row_holds_both():
    (rows,) = measure([4], [(140, [140, 112])], [1, 2], frames=3)
    assert [(row["resolution"], row["tracker_resolution"], row["detect_every"]) for row in rows] == [
        *((140, 140, 1), (140, 140, 2)),
        *((140, 112, 1), (140, 112, 2)),
    ]
    for row in rows:
        for name in ("hota", "idf1"):
            assert 0.2 < row[name] <= 1
            assert 0.2 < row[f"bytetrack_{name}"] <= 1
        assert row["id_switches"] >= 0
        assert row["hota"] == row["hota_easy"]
        assert row["hota_hard"] is None
        assert row["j_and_f_fp16"] == pytest.approx(row["j_and_f"], abs=0.01)
    assert len({row["bytetrack_hota"] for row in rows}) == 1
    assert len({row["hota"] for row in rows}) > 1


def test_a_tracker_above_its_detector_is_left_out(capsys: pytest.CaptureFixture[str]):
    assert paired([252, 140], [252, 140]) == [(252, [252, 140]), (140, [140])]
    assert paired([252, 140], None) == [(252, [252]), (140, [140])]
    assert main(["--resolution", "140", "--tracker-resolution", "252"]) == 2
    assert "expected a tracker of at most 140 pixels" in capsys.readouterr().out


def test_the_speed_of_the_served_flow_goes_into_its_rows(video_repository: Path):
    video = held_out_video(1, frames=3)
    rows = [{"resolution": 140, "tracker_resolution": 140, "detect_every": k, "hota": 0.5} for k in (1, 2)]
    told = list(speeds(video_repository, 140, [140], [2], [(video, names_of(video))], rounds=1))
    fill(rows, told)
    assert told[0].keys() - rows[0].keys() == {"fps", "cpu_ms"}
    assert rows[1] == {**rows[1], "hota": 0.5, **told[0]}
    assert min(rows[1]["fps"], rows[1]["cpu_ms"]) > 0


def test_speed_without_a_table_is_refused(tmp_path: Path, video_repository: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["--repository", str(video_repository), "--resolution", "140", "--output", str(tmp_path / "none.json")]
    assert main(argv) == 2
    assert "none.json" in capsys.readouterr().out


def test_occluders_are_asked_for_by_no_name():
    video = held_out_video(2, frames=2)
    assert video.kind == "occluder"
    assert video.names[-1].startswith("grey")
    assert names_of(video)
    assert not any(name.startswith("grey") for name in names_of(video))


def test_hard_kinds_have_figures_of_their_own():
    same, other = (FrameOverlap((1,), (track,), np.ones((1, 1))) for track in (1, 2))
    told = figures([("twins", identity([same, other])), ("plain", identity([same, same]))])
    assert (told["id_switches"], told["id_switches_hard"], told["id_switches_easy"]) == (1, 1, 0)
    assert (told["idf1"], told["idf1_hard"], told["idf1_easy"]) == (0.75, 0.5, 1.0)
