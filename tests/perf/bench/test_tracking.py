"""Ids of the tracker and of ByteTrack on the same drawn video."""

from export.tiny.video.evaluate import held_out_video
from perf.bench.tracking import measure, names_of


def test_a_row_holds_both():
    (row,) = measure([4], 140, 140, [2], frames=4)
    assert (row["resolution"], row["tracker_resolution"], row["detect_every"]) == (140, 140, 2)
    for name in ("hota", "idf1"):
        assert 0.2 < row[name] <= 1
        assert 0.2 < row[f"bytetrack_{name}"] <= 1
    assert row["id_switches"] >= 0


def test_occluders_are_asked_for_by_no_name():
    video = held_out_video(2, frames=2)
    assert video.kind == "occluder"
    assert video.names[-1].startswith("grey")
    assert names_of(video)
    assert not any(name.startswith("grey") for name in names_of(video))
