"""Kubernetes' autoscaling rule, step by step."""

from __future__ import annotations

import pytest

from perf.scale.autoscaler import SYNC_S, Autoscaler, Behavior, Policy, Rules

FREE = Rules(0, (Policy("Percent", 10_000, 15),))


def scaler(replicas: int, up: Rules = FREE, down: Rules = FREE, least: int = 1, most: int = 100) -> Autoscaler:
    return Autoscaler(Behavior(least, most, up, down), replicas)


@pytest.mark.parametrize(
    ("replicas", "ready", "usages", "wanted"),
    [
        pytest.param(4, 4, [1.5], 6, id="value over target times pods"),
        pytest.param(4, 4, [1.3], 6, id="rounded up"),
        pytest.param(4, 4, [1.09], 4, id="within the tolerance"),
        pytest.param(4, 4, [0.91], 4, id="within the tolerance, below"),
        pytest.param(4, 4, [0.5], 2, id="fewer"),
        pytest.param(4, 4, [0.0], 1, id="not below the least"),
        pytest.param(60, 60, [9.0], 100, id="not above the most"),
        pytest.param(8, 4, [2.0], 8, id="pods that start do not make it grow again"),
        pytest.param(4, 4, [0.5, 1.5], 6, id="of several metrics the largest proposal"),
        pytest.param(4, 4, [0.5, 1.0], 4, id="a metric on target holds the number"),
        pytest.param(4, 0, [], 4, id="nothing is known"),
    ],
)
def test_the_proposal(replicas, ready, usages, wanted):
    assert scaler(replicas).sync(0, ready, usages) == wanted


def test_shrinking_waits_until_no_recent_proposal_was_larger():
    autoscaler = scaler(10, down=Rules(60, FREE.policies))
    wanted = [autoscaler.sync(now, 10, [1.0 if now == 0 else 0.5]) for now in range(0, 90, SYNC_S)]
    assert wanted == [10, 10, 10, 10, 5, 5]


def test_growing_waits_as_well_where_it_has_a_window():
    autoscaler = scaler(4, up=Rules(30, FREE.policies))
    assert [autoscaler.sync(now, 4, [1.0 if now == 0 else 2.0]) for now in (0, 15, 30)] == [4, 4, 8]


@pytest.mark.parametrize(
    ("policies", "wanted"),
    [
        pytest.param([Policy("Pods", 2, 60)], [12, 12, 12, 12, 14], id="pods in a period"),
        pytest.param([Policy("Percent", 50, 60)], [15, 15, 15, 15, 23], id="per cent, rounded up"),
        pytest.param([Policy("Pods", 2, 60), Policy("Percent", 50, 60)], [15, 15, 15, 15, 23], id="the larger change"),
    ],
)
def test_policies_bound_growing(policies, wanted):
    autoscaler = scaler(10, up=Rules(0, tuple(policies)))
    assert [autoscaler.sync(now, 10, [9.0]) for now in range(0, 75, SYNC_S)] == wanted


def test_policies_bound_shrinking():
    autoscaler = scaler(20, down=Rules(0, (Policy("Percent", 10, 60),)))
    assert [autoscaler.sync(now, 20, [0.1]) for now in range(0, 75, SYNC_S)] == [18, 18, 18, 18, 16]
