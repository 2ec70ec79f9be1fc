"""What the long run of videos is held to."""

import pytest

from perf.bench.video_soak import growth


@pytest.mark.parametrize(
    ("server", "gpu", "wanted"),
    [
        pytest.param((300, 600, 610, 612), (0, 0, 0, 0), 2 / 610, id="on the CPU; the first half is not counted"),
        pytest.param((600, 600, 600, 600), (900, 1000, 1000, 1050), 0.05, id="on a GPU"),
        pytest.param((600, 600, 600, 590), (900, 1000, 1000, 990), 0.0, id="less"),
    ],
)
def test_growth_is_the_larger_of_both(server, gpu, wanted):
    rows = [{"server_mb": s, "gpu_mb": g} for s, g in zip(server, gpu, strict=True)]
    assert growth(rows) == pytest.approx(wanted)
