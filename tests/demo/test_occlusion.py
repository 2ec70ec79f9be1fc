"""The film in which something is hidden: it has an occlusion, and its ground truth is that of the frames."""

import json

import av
import numpy as np
import pytest
from pycocotools import mask as rle

from demo import occlusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("films")
    assert occlusion.main(["--output", str(made), "--size", "160x90"]) == 0
    return made


def test_an_object_is_hidden_between_two_moments_at_which_it_is_seen():
    columns = {
        "hidden once": [9, 9, 0, 0, 9, 9],
        "never comes back": [9, 9, 0, 0, 0, 0],
        "comes late": [0, 0, 0, 9, 9, 9],
        "a sliver is left": [99, 99, 4, 4, 99, 99],
        "half of it is left": [9, 9, 5, 5, 9, 9],
        "hidden twice": [9, 0, 9, 0, 0, 9],
    }
    found = occlusion.occlusions(np.array(list(columns.values())).T)
    assert found == [(1, 2, 3), (4, 2, 3), (6, 1, 1), (6, 3, 4)]


def test_something_is_hidden_and_comes_back(folder):
    truth = json.loads((folder / "followed.json").read_text())
    with av.open(str(folder / "followed.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(truth["frames"]) == occlusion.FRAMES
    assert truth["occlusions"]
    for gap in truth["occlusions"]:
        areas = np.array([sum(o["area"] for o in f if o["object"] == gap["object"]) for f in truth["frames"]])
        before, hidden, after = np.split(areas, [gap["first"], gap["last"] + 1])
        assert hidden.max() < 0.05 * areas.max()
        assert min(before.max(), after.max()) > areas.max() / 2
        assert gap["class"] in truth["classes"]


def test_masks_and_boxes_agree(folder):
    truth = json.loads((folder / "followed.json").read_text())
    first = truth["frames"][0]
    assert [thing["object"] for thing in first] == [1, 2, 3]
    for thing in first:
        mask = rle.decode(thing["mask"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0] / 160, rows[0] / 90, (columns[-1] + 1) / 160, (rows[-1] + 1) / 90]
        assert thing["bbox"] == pytest.approx(box)
        assert (mask.shape, int(mask.sum())) == ((90, 160), thing["area"])
