"""Whose id an object has before and after it was hidden, for answers that are known, and what is drawn of them."""

import io
from dataclasses import fields

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from clients.conversation import Tracks
from clients.detections import Detections
from demo import followed
from demo.mosaic import GUTTER

LEFT, RIGHT = (0.0, 0.0, 0.25, 0.5), (0.5, 0.5, 1.0, 1.0)
GAP = {"object": 1, "class": "a", "first": 1, "last": 2}
SEEN = [[("a", LEFT), ("b", RIGHT)], [("b", RIGHT)], [("b", RIGHT)], [("a", LEFT), ("b", RIGHT)]]


@pytest.fixture
def followed_reel(reel):
    """`followed_reel(ids)`: "a" is hidden in two of four frames, "b" is always there; `ids` are those given to what is
    seen, frame by frame."""

    def make(ids, answers=SEEN, occlusions=(GAP,)):
        found = [[(label, 0.9, box) for label, box in frame] for frame in answers]
        made = reel(["a", "b"], SEEN, found, name="followed")
        made.film.truth["occlusions"] = list(occlusions)
        for frame in made.film.truth["frames"]:
            for thing in frame:
                thing["object"] = 1 if thing["class"] == "a" else 2
        for shot, numbers in zip(made.shots, ids, strict=True):
            given = {each.name: getattr(shot.found, each.name) for each in fields(Detections)}
            hidden = np.array([] if len(numbers) == 2 else [1], np.int64)
            many = len(numbers)
            shot.found = Tracks(
                **given,
                track_ids=np.array(numbers, np.int64),
                track_scores=np.ones(many, np.float32),
                track_states=np.ones(many, np.int32),
                hidden_ids=hidden,
            )
        return made

    return make


@pytest.mark.parametrize(
    ("ids", "before", "after", "kept"),
    [
        ([[1, 2], [2], [2], [1, 2]], 1, 1, True),
        ([[1, 2], [2], [2], [3, 2]], 1, 3, False),
        ([[1, 2], [2], [2], [2, 1]], 1, 2, False),  # the two have changed places
    ],
)
def test_ids_before_and_after(followed_reel, ids, before, after, kept):
    told = followed.summary(followed_reel(ids), 2.0)
    assert told["occlusions"] == [GAP | {"id_before": before, "id_after": after, "kept": kept}]
    assert told["ids_kept"] is kept
    assert (told["frames"], told["failed"], told["fps"], told["drawn"]) == (4, 0, 2.0, 2)
    assert told["objects"] == len({number for frame in ids for number in frame})


def test_an_object_that_is_not_found_keeps_nothing(followed_reel):
    elsewhere = [[("a", (0.3, 0.5, 0.5, 1.0)), ("b", RIGHT)], *SEEN[1:]]
    told = followed.summary(followed_reel([[1, 2], [2], [2], [1, 2]], elsewhere), 1.0)
    assert told["occlusions"][0] | {"id_before": None, "id_after": 1, "kept": False} == told["occlusions"][0]
    assert told["ids_kept"] is False


def test_frames_without_an_answer_are_looked_past(followed_reel):
    camera = followed_reel([[1, 2], [2], [2], [1, 2]])
    del camera.shots[3]
    camera.errors.append("frame 3: too late")
    told = followed.summary(camera, 1.0)
    assert (told["frames"], told["failed"], told["occlusions"][0]["id_after"]) == (3, 1, None)


def test_a_film_without_occlusions_says_nothing_of_ids(followed_reel):
    told = followed.summary(followed_reel([[1, 2], [2], [2], [1, 2]], occlusions=()), 1.0)
    assert (told["occlusions"], told["ids_kept"]) == ([], None)


def test_table(followed_reel):
    console = Console(width=130, record=True, file=io.StringIO())
    told = followed.summary(followed_reel([[1, 2], [2], [2], [7, 2]]), 1.0)
    console.print(followed.table(told | {"model": "sam3_video_r252"}))
    text = console.export_text()
    assert all(word in text for word in ("sam3_video_r252", "1 to 2", "#1", "#7", "no"))


def test_pictures(followed_reel, tmp_path):
    camera = followed_reel([[1, 2], [2], [2], [1, 2]])
    assert [shot.index for shot in followed.moments(camera)] == [0, 1, 3]  # before, hidden, after
    followed.draw(camera, tmp_path / "f.mp4", tmp_path / "f.png")
    with av.open(str(tmp_path / "f.mp4")) as container:
        assert len(list(container.decode(video=0))) == 4
    panel = 240 + followed.HEADER  # the film is twice as wide as high
    assert Image.open(tmp_path / "f.png").size == (2 * (480 + GUTTER) + GUTTER, 2 * (panel + GUTTER) + GUTTER)


def test_without_answers_nothing_is_drawn(reel, tmp_path):
    empty = reel(["a"], [], [])
    empty.film.truth["occlusions"] = []
    followed.draw(empty, tmp_path / "f.mp4", tmp_path / "f.png")
    assert not list(tmp_path.iterdir())
    assert (followed.summary(empty, 1.0)["frames"], followed.summary(empty, 1.0)["ids_kept"]) == (0, None)
