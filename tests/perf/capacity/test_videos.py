"""`sam3-perf capacity --video`: times that rows give, what is recommended, and why the others will not do."""

from __future__ import annotations

import json
from itertools import product

import pytest

from ensemble.server.memory import MB
from ensemble.spec import RESOLUTIONS
from ensemble.video.sizes import slot_bytes
from perf import results
from perf.capacity import cli as capacity
from perf.capacity import videos
from perf.capacity.advice import Requirements
from perf.capacity.evidence import published
from perf.capacity.videos import Times, memory, recommend, times

KNOWN = {
    (1008, 1008): Times(12.0, 16.0, 14.0, 2.5),
    (1008, 560): Times(9.0, 14.0, 20.0, 0.5),
    (560, 560): Times(3.0, 12.0, 2.0, 0.5),
}


def rows_of(known):
    """What a GPU of these times would have given: one video without a server, then one and eight at a server."""
    rows = []
    for (resolution, tracker), cost in known.items():
        pair = {"resolution": resolution, "tracker_resolution": tracker}
        alone = pair | {"sessions": 1, "detect_every": 1000}
        rows += [alone | {"objects": n, "fps": 1e3 / (20 + cost.each * n)} for n in (1, 8, 64)]
        for sessions, every in product((1, 8), (1, 8)):
            served = pair | {"sessions": sessions, "detect_every": every, "objects": 5, "stage_ms": {}}
            rows.append(served | {"fps": 1e3 / cost.ms(sessions, every, 5)})
    return rows


def test_the_rows_times_are_found_again():
    found = times(rows_of(KNOWN))
    assert list(found) == sorted(KNOWN, reverse=True)
    for pair, cost in KNOWN.items():
        assert (found[pair].base, found[pair].call) == pytest.approx((cost.base, cost.call))
        assert (found[pair].detector, found[pair].each) == pytest.approx((cost.detector, cost.each))


def test_a_pair_that_was_measured_in_one_way_only_tells_no_times():
    assert times([row for row in rows_of(KNOWN) if row["detect_every"] != 1]) == {}


def test_the_times_meet_what_they_were_fitted_to():
    rows = results.load(videos.MEASURED)["rows"]
    known = times(rows)
    assert {pair for pair in known if pair[0] == pair[1]} == {(r, r) for r in RESOLUTIONS}
    for row in (r for r in rows if "stage_ms" in r):
        cost, batch = known[row["resolution"], row["tracker_resolution"]], min(row["sessions"], row.get("max_batch", 8))
        told = cost.ms(batch, row["detect_every"], row["objects"])
        # Servers with a stated memory were not fitted to: three times as many objects, other batches.
        assert told == pytest.approx(1e3 / row["fps"], rel=0.05 if row.get("memory_mb") else 0.12), row


def choices(cameras=8, memory_mb=24_000.0, fps=1.0, objects=5, every=videos.EVERY, **more):
    wanted = Requirements(cameras, memory_mb, fps=fps, **more)
    return recommend(wanted, objects, every, published("h200"), rows_of(KNOWN))


def test_the_finest_that_is_fast_enough_with_as_many_detections_as_that_allows():
    first = choices(fps=4.3)[0]
    assert (first.resolution, first.tracker_resolution, first.detect_every) == (1008, 1008, 8)
    assert first.fps_per_camera.value == pytest.approx(1e3 / KNOWN[1008, 1008].ms(8, 8, 5) / 8)
    assert first.fps_per_camera.basis == "measured elsewhere"


def test_what_is_too_slow_says_how_fast_it_is():
    found = choices(fps=6)
    assert [(c.resolution, c.tracker_resolution, c.detect_every) for c in found] == [
        (1008, 560, 4),
        (560, 560, 1),
        (1008, 1008, 16),
    ]
    assert found[2].reasons == [
        "1008 with tracker 1008 gives each of 8 cameras with 5 objects each 4.6 frames a second, with a detection every"
        " 16th frame; you want 6"
    ]
    assert choices(prefer="speed")[0].resolution == 560


def test_objects_take_memory():
    few, many = (memory(Requirements(8, 24_000.0), n, (1008, 1008))[0] for n in (10, 100))
    assert many.total - few.total == pytest.approx(8 * 90 * slot_bytes(videos.tracking(1008, 80)) / MB)
    reasons = choices(memory_mb=8_192, objects=100)[-1].reasons
    assert "1008 with tracker 1008 needs " in reasons[0]
    assert "GB for 8 cameras with 100 objects each, you have 8" in reasons[0]


def test_a_tracker_of_its_own_resolution_has_an_image_transformer_of_its_own():
    wanted = Requirements(1, 24_000.0)
    same, lower = (memory(wanted, 1, pair)[0].weights for pair in ((1008, 1008), (1008, 560)))
    assert lower - same == pytest.approx(2 * 32 * (4 * 1024**2 + 2 * 1024 * 4736) / MB)


def test_the_text_encoder_leaves_a_small_gpu():
    need, note = memory(Requirements(1, 4_096.0), 16, (1008, 1008))
    assert need.total <= 4_096
    assert "the text encoder is on the CPU then" in note


@pytest.mark.parametrize(
    ("argv", "status", "sentence"),
    [
        pytest.param("--precision fp8", 2, "videos are measured in fp16, got 'fp8'", id="fp8"),
        pytest.param("--engine tensorrt_rtx", 2, "videos are served by engine aoti on a GPU", id="plans"),
        pytest.param("--resolution 896", 2, "expected resolutions whose videos were measured (1008 with", id="896"),
        pytest.param("--objects 0", 2, "objects must be 1 to 256, got 0", id="no objects"),
        pytest.param("--detect-every 0", 2, "detect-every must be 1 to 1000, got 0", id="never"),
        pytest.param("--fps 1000", 1, "no pair of resolutions will do: the least memory is", id="too fast"),
        pytest.param("--object-pixels 10", 1, "no pair of resolutions will do", id="too small to be seen"),
    ],
)
def test_what_cannot_be_is_a_sentence(capsys, argv, status, sentence):
    words = ["--video", "--cameras", "2", "--memory", "8GB", *argv.split()]
    assert capacity.main(words) == status
    out, err = capsys.readouterr()
    assert sentence in out + err
    assert json.loads(out.splitlines()[-1])["error"]


def test_twenty_objects_at_1008_on_32_gb(capsys):
    words = "--video --cameras 1 --objects 20 --memory 32GB --resolution 1008 --calibration h200"
    assert capacity.main(words.split()) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["resolution"], found["tracker_resolution"]) == (1008, 1008)
    assert found["memory_mb"] < 8_192
    assert found["figures"]["memory_mb"]["basis"] == "modelled"
