"""The pod is fitted to two measured rows of the whole server; the third row must come out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from perf import results
from perf.scale.pod import MEASURED, measured, row_of
from perf.scale.serving import simulate, steady

WITHOUT_A_PAUSE = steady(400)
"""Cameras that have a new frame whenever an answer comes, as perf_analyzer has."""


@pytest.mark.parametrize(
    ("resolution", "error"),
    [
        pytest.param(1008, 0.02, id="1008"),
        pytest.param(840, 0.02, id="840"),
        pytest.param(672, 0.02, id="672"),
        pytest.param(560, 0.13, id="560, where the processor holds the GPU up"),
    ],
)
def test_eight_frames_under_way(resolution, error):
    pod, row = measured(resolution), row_of(results.load(MEASURED), MEASURED, resolution, 8, 1)
    account = simulate(pod, 1, [0.0] * 8, 16, WITHOUT_A_PAUSE, under_way=1, warm_up=1)
    assert len(account.ages) / account.seconds == pytest.approx(row["fps"], rel=error)
    latency_s = np.median(account.waits) + np.median(account.works) + pod.outside_s
    assert 1e3 * latency_s == pytest.approx(row["p50_ms"], rel=error)


@pytest.mark.parametrize("resolution", [1008, 840, 672, 560])
def test_waiting_over_working_where_every_batch_is_full(resolution):
    """What the autoscaler looks at, within 0.35: batches are read one after the other in the real server."""
    pod, row = measured(resolution), row_of(results.load(MEASURED), MEASURED, resolution, 8, 2)
    account = simulate(pod, 1, [0.0] * 8, 16, WITHOUT_A_PAUSE, warm_up=1)
    worked = sum(v for k, v in row.items() if k.startswith("stage_") and k not in ("stage_queue_ms", "stage_total_ms"))
    waited = row["stage_total_ms"] - worked
    simulated = np.mean(account.waits) / (np.mean(account.works) + pod.outside_s)
    assert simulated == pytest.approx(waited / worked, rel=0.35)


def test_a_file_without_the_rows_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "end_to_end.json"
    path.write_text(json.dumps({"machine": {}, "details": [], "setting": {}, "rows": []}))
    with pytest.raises(results.ResultsError, match="sam3-perf bench end-to-end"):
        measured(672, path)
