"""The frame-by-frame simulation: nothing is lost, and closed forms of simple queues come out."""

from __future__ import annotations

import numpy as np
import pytest

from perf.scale.pod import Pod
from perf.scale.serving import poisson, simulate, steady

ONE_BY_ONE = Pod(fixed_s=0.0, frame_s=0.01, largest=1)


@pytest.mark.parametrize(
    ("pods", "cameras", "under_way"),
    [
        pytest.param(1, 1, 1, id="one camera"),
        pytest.param(3, 20, 2, id="light load"),
        pytest.param(2, 200, 2, id="four times what the pods carry"),
    ],
)
def test_every_frame_is_answered_dropped_or_left(pods, cameras, under_way):
    account = simulate(Pod(0.004, 0.007, 0.004), pods, [0.0] * cameras, 20, steady(5), under_way=under_way)
    assert account.made == account.answered + account.dropped + account.left
    assert account.made == pytest.approx(20 * 5 * cameras, rel=0.05)
    assert account.left <= cameras * (under_way + 1)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_m_d_1(load):
    """Many cameras with random intervals are a Poisson stream; its mean wait for one server with constant service time
    s is load * s / (2 * (1 - load)) (Pollaczek-Khinchine)."""
    service = ONE_BY_ONE.batch_s(1)
    account = simulate(ONE_BY_ONE, 1, [0.0] * 1000, 400, poisson(load / service / 1000), under_way=9, warm_up=20)
    assert account.dropped == 0
    assert account.busy / account.seconds == pytest.approx(load, rel=0.03)
    assert np.mean(account.waits) == pytest.approx(load * service / (2 * (1 - load)), rel=0.06)


def test_under_overload_pods_carry_what_full_batches_carry_and_cameras_share_it():
    pod, cameras = Pod(0.004, 0.007, 0.0), 100
    account = simulate(pod, 2, [0.0] * cameras, 40, steady(5), warm_up=10)
    assert len(account.ages) / account.seconds == pytest.approx(2 * pod.fps, rel=0.01)
    assert len(account.gaps) == cameras
    assert max(account.gaps) < 3 * cameras / (2 * pod.fps)
