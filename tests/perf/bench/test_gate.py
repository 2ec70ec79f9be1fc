"""The measurement of the motion gate: the films' ground truth, what it counts, a short film with the real server."""

import numpy as np
import pytest

from clients.video.motion import Motion
from clients.video.sources import open_source
from export.tiny.scenes import SceneObject
from perf.bench import gate, quiet_films
from perf.bench.quiet_films import FPS, SIZE, Passage, QuietFilm, Trouble

DISC = SceneObject("red", "circle", (220, 40, 40), 0.1, 0.5, 0.5, 0.0)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Six seconds, in which one object crosses the picture."""
    return quiet_films.draw(tmp_path_factory.mktemp("films") / "a.mp4", Trouble(), 6.0, 0.2, seed=3)


def film_with(*moving):
    return QuietFilm(None, (), ((),) * len(moving), tuple(map(bool, moving)))


def test_what_passes():
    crossing, staying, appearing = (
        Passage(DISC, 1.0, 2.0, 0.0),
        Passage(DISC, 1.0, 2.0, 1.0),
        Passage(DISC, 1.0, 0.0, 1.0),
    )
    assert crossing.at(0.9) is crossing.at(3.1) is None
    assert [round(crossing.at(t).x, 2) for t in (1.0, 2.0, 3.0)] == [-0.1, 0.5, 1.1]
    assert [round(staying.at(t).x, 2) for t in (2.0, 2.5, 3.0, 4.0)] == [0.5, 0.5, 0.5, 1.1]
    assert (appearing.at(1.5), appearing.at(2.1)) == (DISC, None)


def test_a_film_and_its_truth(film):
    with open_source(film.path) as source:
        frames = [frame.rgb for frame in source]
    assert len(frames) == len(film.instances) == len(film.moving) == 6 * FPS
    assert frames[0].shape == (*SIZE, 3)
    assert not any(film.moving[:30])
    assert {"red circle"} <= set(film.classes)
    first = film.firsts[0]
    (new,) = [i for i in film.instances[first] if i.index > 3]
    assert (new.colour, new.shape) == ("red", "circle")
    x0, y0, x1, y1 = (round(side * size) for side, size in zip(new.box, (*SIZE[::-1], *SIZE[::-1]), strict=True))
    changed = np.abs(frames[first][y0:y1, x0:x1].astype(int) - frames[first - 1][y0:y1, x0:x1]).max(2) > 30
    assert changed.sum() > 0.5 * new.area


@pytest.mark.parametrize(
    ("moving", "firsts"),
    [("000000", []), ("0001110", [3]), ("01101100000100", [1, 11]), ("0100001", [1]), ("01000001", [1, 7])],
    ids=["nothing", "one", "a short pause is none", "nearly half a second", "half a second"],
)
def test_first_frames(moving, firsts):
    assert film_with(*map(int, moving)).firsts == firsts


@pytest.mark.parametrize(
    ("sent", "recall"),
    [("0001000000", 1.0), ("0000100000", 1.0), ("0000010000", 0.0), ("0010000000", 0.0)],
    ids=["at once", "one later", "two later", "before"],
)
def test_an_event_is_found_by_its_first_frame_or_the_next(sent, recall):
    row = gate.row("yard", film_with(*map(int, "0001110000")), [one == "1" for one in sent], 0.3)
    assert (row["events"], row["first_frame_recall"], row["sent"], row["saved"]) == (1, recall, 1, 0.9)
    assert row["activity"] == 0.3
    other = {"events": 3, "first_frame_recall": 1.0}
    assert gate.found_share([row, other, {"events": 0, "first_frame_recall": None}]) == (3 + recall) / 4


def test_the_gate_finds_what_is_drawn(film):
    sent, took = gate.through(film, Motion())
    row = gate.row("quiet", film, sent, took)
    assert row["first_frame_recall"] == 1.0
    assert row["saved"] > 0.4
    assert took > 0


@pytest.mark.server
async def test_average_precision_with_the_gate_is_that_of_all_frames(server, film):
    found = await gate.precision(film, server.grpc_url, "sam3_r140", Motion())
    assert found["fleet_sent"] == sum(gate.through(film, Motion())[0])
    assert found["map50_all_frames"] > 0.2
    assert found["map50"] == pytest.approx(found["map50_all_frames"], abs=0.1)
