"""Ids of the tracker and of ByteTrack on the same drawn video."""

import numpy as np

from export.tiny.video.evaluate import held_out_video
from export.tiny.video.identity import FrameOverlap, identity
from perf.bench.tracking import figures, measure, names_of


def test_a_row_holds_both():
    (row,) = measure([4], 140, 140, [2], frames=4)
    assert (row["resolution"], row["tracker_resolution"], row["detect_every"]) == (140, 140, 2)
    for name in ("hota", "idf1"):
        assert 0.2 < row[name] <= 1
        assert 0.2 < row[f"bytetrack_{name}"] <= 1
    assert row["id_switches"] >= 0
    assert row["hota"] == row["hota_easy"]
    assert row["hota_hard"] is None


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
