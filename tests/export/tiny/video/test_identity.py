"""HOTA, IDF1 and identity switches against what the package trackeval 1.0.0 gave for the same tracks."""

import numpy as np
import pytest

from export.tiny.video.identity import FrameOverlap, identity


def two_objects(swap, missing, overlap):
    """20 frames with two objects; their tracks swap at frame `swap`, the second begins at frame `missing`."""
    frames = []
    for t in range(20):
        on = (0, 1) if t < swap else (1, 0)  # the object that each track lies on
        tracks = (7,) if t < missing else (7, 9)
        table = np.array([[overlap * (on[k] == i) for k in range(len(tracks))] for i in range(2)])
        frames.append(FrameOverlap((3, 5), tracks, table))
    return frames


@pytest.mark.parametrize(
    ("swap", "missing", "overlap", "hota", "idf1", "switches"),
    [
        pytest.param(20, 0, 1.0, 1.0, 1.0, 0, id="perfect"),
        pytest.param(15, 0, 1.0, 0.696932, 0.75, 2, id="a swap"),
        pytest.param(15, 8, 1.0, 0.561253, 0.611111, 2, id="a swap, and a late track"),
        pytest.param(20, 0, 0.62, 0.631579, 1.0, 0, id="loose masks"),
        pytest.param(10, 4, 0.7, 0.398727, 0.526316, 2, id="all of it"),
    ],
)
def test_as_trackeval(swap, missing, overlap, hota, idf1, switches):
    told = identity(two_objects(swap, missing, overlap))
    assert told.hota == pytest.approx(hota, abs=1e-6)
    assert told.idf1 == pytest.approx(idf1, abs=1e-6)
    assert told.switches == switches


def test_videos_add_up():
    perfect, swapped = identity(two_objects(20, 0, 1.0)), identity(two_objects(15, 0, 1.0))
    both = perfect + swapped
    assert both.switches == 2
    assert both.idf1 == pytest.approx((perfect.idf1 + swapped.idf1) / 2)
    assert swapped.hota < both.hota < perfect.hota


def test_nothing_found_and_nothing_there():
    empty = FrameOverlap((), (), np.zeros((0, 0)))
    assert identity([empty]).hota == identity([empty]).idf1 == 0
    lost = identity([FrameOverlap((1,), (), np.zeros((1, 0)))])
    assert (lost.wanted, lost.found, lost.switches) == (1, 0, 0)
