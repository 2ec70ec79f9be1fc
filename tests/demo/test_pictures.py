"""The mosaic, the table and the JSON line of known reels."""

import io

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from demo import mosaic, report
from demo.score import score

BOX = (0.25, 0.25, 0.75, 0.75)


@pytest.fixture
def reels(reel):
    """Three cameras; the second has fewer frames, the third none."""
    things, answers = [[("a", BOX)]], [[("a", 0.9, BOX), ("a", 0.2, BOX)]]
    return [
        reel(["a", "b"], things * 3, answers * 3, name="first"),
        reel(["a"], things, answers, name="second"),
        reel([f"a very long name of a class {i}" for i in range(9)], [], [], name="third"),
    ]


@pytest.fixture
def result(reels):
    total, each = score(reels)
    return report.summary(reels, 2.0, total), total, each


def test_summary(result):
    line = result[0]
    assert (
        line | {"cameras": 3, "frames": 4, "failed": 0, "fps": 2.0, "p95_ms": 20.0, "mean_batch": 2.0, "detections": 4}
        == line
    )
    assert line["map50"] == 1.0


def test_table_names_every_camera(reels, result):
    line, total, each = result
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(report.table(reels, line, total, each))
    text = console.export_text()
    for word in ("first", "second", "third", "all", "box AP50", "1.000"):
        assert word in text


def test_mosaic(reels, result, tmp_path):
    figures = report.figures(reels, result[0], "sam3_r252")
    assert mosaic.write(reels, figures, tmp_path / "m.mp4", tmp_path / "m.png") == 3
    picture = np.asarray(Image.open(tmp_path / "m.png"))
    panel = 320 + mosaic.HEADER  # the films are twice as wide as high
    assert picture.shape == (2 * (panel + mosaic.GUTTER) + mosaic.GUTTER, 2 * (640 + mosaic.GUTTER) + mosaic.GUTTER, 3)
    with av.open(str(tmp_path / "m.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    assert frames[0].shape == picture.shape


def test_a_camera_without_more_frames_is_darkened(reels, result):
    summary = mosaic._figures_panel(report.figures(reels, result[0], "m"), mosaic._panel_size(reels))
    first, later = (mosaic.compose(reels, moment, summary) for moment in (0, 1))
    second = (slice(mosaic.GUTTER + mosaic.HEADER, 300), slice(640 + 2 * mosaic.GUTTER, 1280))
    assert later[second].mean() < 0.6 * first[second].mean()
    left = (second[0], slice(mosaic.GUTTER, 640))
    assert np.array_equal(later[left], first[left])


def test_no_frames_no_mosaic(reel, tmp_path):
    empty = [reel(["a"], [], [])]
    line = report.summary(empty, 1.0, score(empty)[0])
    assert mosaic.write(empty, report.figures(empty, line, "m"), tmp_path / "m.mp4", tmp_path / "m.png") == 0
    assert not list(tmp_path.iterdir())
    assert (line["frames"], line["map50"]) == (0, None)
