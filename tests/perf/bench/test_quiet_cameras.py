"""The measurement of many quiet cameras: when an event is answered, what a result file keeps, a short run for real."""

import json
import math
import os

import numpy as np
import pytest

from clients.fleet.request import Answer
from clients.video.reader import CapturedFrame
from perf.bench import gate, quiet_cameras
from perf.bench.quiet_cameras import Watch, cpu_seconds, quantile, within_limits
from perf.bench.quiet_films import QuietFilm

FOUND = {"first_answer_p95_ms": 1500.0, "server_cpu": 0.7}


def answer(number, outcome="answered", late=0.0, latency=0.2, began=100.0):
    """To a frame that was captured `late` seconds after it was due."""
    frame = CapturedFrame(number, number / 10, np.zeros((2, 2, 3), np.uint8), began + number / 10 + late, 0, b"")
    return Answer(frame, outcome, 1e3 * latency)


@pytest.mark.parametrize(
    ("answers", "delay"),
    [
        ([answer(10)], 0.2),
        ([answer(9), answer(10, latency=0.7)], 0.7),
        ([answer(10, "still"), answer(12)], 0.4),
        ([answer(10, "late", latency=3.0), answer(11)], 0.3),
        ([answer(10, late=0.5)], 0.7),
        ([answer(9)], math.inf),
        ([], math.inf),
    ],
    ids=["at once", "slowly", "two frames later", "one was late", "captured late", "only before", "never"],
)
def test_an_event_is_answered_by_its_first_frame_or_a_later_one(answers, delay):
    film = QuietFilm(None, (), ((),) * 20, (*[False] * 10, *[True] * 5, *[False] * 5))
    watch = Watch(film)
    for one in [answer(0), *answers]:
        watch(one)
    assert watch.delays() == pytest.approx([delay])


def test_an_event_that_was_never_answered_is_not_left_out():
    delays = [0.1] * 18 + [0.3, math.inf]
    assert (quantile(delays, 0.5), quantile(delays, 0.95), quantile(delays, 1.0)) == (100, 300, None)
    assert not within_limits(FOUND | {"first_answer_p95_ms": None})


@pytest.mark.parametrize(
    ("found", "within"), [({}, True), ({"first_answer_p95_ms": 1500.1}, False), ({"server_cpu": 0.71}, False)]
)
def test_limits(found, within):
    assert within_limits(FOUND | found) == within


def test_processor_time_is_counted():
    before = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) < before + 0.05:
        pass


def test_a_result_file_keeps_its_other_rows(tmp_path):
    path = tmp_path / "gate.json"
    assert gate.before(path, ["quiet"]) == ({}, [])
    rows = [{"scene": "quiet"}, {"scene": "lamp"}, {"scene": "16 cameras", "cameras": 16}]
    path.write_text(json.dumps({"events": 35, "rows": rows}))
    assert gate.before(path, ["16 cameras"]) == ({"events": 35, "rows": rows}, rows[:2])


@pytest.mark.parametrize("options", [["--cameras", "0", "--repository", "r"], ["--cameras", "2"]])
def test_unusable_options(options, capsys):
    with pytest.raises(SystemExit) as error:
        gate.main(options)
    assert error.value.code == 2
    assert "expected at least one camera and a --repository" in capsys.readouterr().err


@pytest.mark.server
async def test_two_cameras_before_a_server(server, tmp_path):
    """Every event is answered, and every frame accounted for, however slow the machine is."""
    films = quiet_cameras.films(tmp_path, 2, 5.0, 0.3)
    watches = [Watch(film) for film in films]
    row = await quiet_cameras.play(watches, server, "sam3_r140", gate.Motion())
    assert row["events"] == sum(len(film.firsts) for film in films) == row["events_answered"] > 0
    assert row["frames"] == 100
    assert 0 < row["server_cpu"] <= 1
    assert 0 < row["first_answer_p50_ms"] <= row["first_answer_p95_ms"]
