"""A day second by second: what goes in comes out, events happen, and it agrees with the frame-by-frame simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perf.scale import demand, serving, settings
from perf.scale.autoscaler import Policy, Rules
from perf.scale.day import Cluster, simulate
from perf.scale.pod import Pod
from perf.scale.response import AGES_S, percentile, respond

POD = Pod(0.004, 0.007, 0.004)
RESPONSE = respond(POD, 5.0, seconds=6.0)
CALM = Cluster(losses=())
CHOSEN = settings.deployed()


def test_every_frame_is_answered_dropped_or_failed():
    made = np.linspace(10, 3 * POD.fps, 3600)
    day = simulate(POD, RESPONSE, made, settings.fixed(2), Cluster(notice_s=30, losses=(0.3,)))
    assert np.allclose(day.made, day.answered + day.dropped + day.failed)
    assert day.dropped.sum() > 0
    assert day.failed.sum() == pytest.approx(made[1080:1110].sum() / 2)


def test_a_lost_node_is_replaced_after_kubernetes_has_noticed_and_the_pod_has_started():
    day = simulate(POD, RESPONSE, np.full(3600, 50.0), settings.fixed(2), Cluster(start_s=180, losses=(0.5,)))
    lost = np.flatnonzero(day.ready == 1)
    assert lost[0] == 1800
    assert len(lost) == pytest.approx(340 + 180, abs=15)
    assert set(day.ready) == {1, 2}


def test_nothing_serves_until_a_pod_has_started():
    day = simulate(POD, RESPONSE, np.full(1800, 20.0), settings.fixed(1), Cluster(losses=(0.25,)))
    assert day.ready.min() == 0
    assert np.all(day.answered[day.ready == 0] == 0)
    assert day.gaps.max() == np.sum(day.ready == 0)


def test_pods_follow_the_load_up_at_once_and_down_slowly():
    made = np.concatenate([np.full(1800, 50.0), np.full(3600, 6 * POD.fps), np.full(5400, 50.0)])
    day = simulate(POD, RESPONSE, made, CHOSEN, CALM)
    assert day.ready[1790] == CHOSEN.behavior.least
    assert day.ready[5390] >= 6
    after = day.ready[5400:]
    assert np.all(after[: CHOSEN.behavior.down.window_s] >= 6), "within the window no pod goes"
    assert after[-1] < day.ready[5390]
    assert day.dropped[:1800].sum() == day.dropped[5400:].sum() == pytest.approx(0, abs=1)


def test_utilisation_that_a_full_card_does_not_show_never_makes_pods():
    full = replace(POD, shown_use=0.736)
    made = np.concatenate([np.full(600, 50.0), np.full(3000, 10 * POD.fps)])
    days = [simulate(full, RESPONSE, made, settings.by_utilisation(CHOSEN, t), CALM) for t in (0.7, 0.6)]
    assert days[0].ready.max() == CHOSEN.behavior.least
    assert days[1].ready.max() > 10


def test_without_the_slow_down_pods_go_at_once():
    made = np.concatenate([np.full(1800, 6 * POD.fps), np.full(600, 50.0)])
    day = simulate(POD, RESPONSE, made, settings.without_slow_down(CHOSEN), CALM)
    assert day.ready[2000] < 3 <= day.ready[1799]


def test_pods_that_start_go_before_those_that_serve():
    quick = replace(CHOSEN.behavior, up=Rules(0, (Policy("Pods", 8, 15),)), down=Rules(0, (Policy("Pods", 8, 15),)))
    made = np.concatenate([np.full(600, 50.0), np.full(60, 4 * POD.fps), np.full(600, 50.0)])
    day = simulate(POD, RESPONSE, made, replace(CHOSEN, behavior=quick), CALM)
    assert day.pods.max() > 2
    assert set(day.ready) == {2}


def test_the_table_agrees_with_every_frame_of_a_load_that_rises():
    """From 40 to 240 cameras on four pods in two minutes: answered frames within 2 %, p95 within 10 %."""
    pods, seconds, fps = 4, 150, 5.0
    begins = np.interp(np.arange(240), (0, 40, 240), (0, 0, 120))
    account = serving.simulate(POD, pods, list(begins), seconds, serving.steady(fps), seed=3)
    cameras = np.searchsorted(begins, np.arange(seconds) + 0.5)
    loads = cameras * fps / pods / POD.fps
    answered = cameras * fps * RESPONSE.at("answered", loads)
    assert account.answered == pytest.approx(answered.sum(), rel=0.02)
    p95 = percentile(RESPONSE.ages_at(loads, answered), 0.95)
    assert np.percentile(account.ages, 95) == pytest.approx(p95, rel=0.1)


def test_a_percentile_of_a_histogram():
    ages = np.random.default_rng(0).lognormal(-2, 0.5, 50_000)
    histogram = np.histogram(ages, AGES_S)[0]
    assert percentile(histogram, 0.95) == pytest.approx(np.percentile(ages, 95), rel=0.02)
    assert percentile(np.zeros(len(AGES_S) - 1), 0.95) == 0


def test_the_demand_follows_the_hours():
    wanted = demand.measured(demand.Demand(fewest=20, most=200))
    assert 0 < wanted.still_fps < 0.2 < wanted.fps
    assert 0 < wanted.night < wanted.rush
    cameras = demand.connected(wanted)
    assert (cameras.min(), cameras.max()) == (20, 200)
    made = demand.frames_per_second(wanted, cameras, seed=1)
    assert np.array_equal(made, demand.frames_per_second(wanted, cameras, seed=1))
    assert made[12 * 3600 : 13 * 3600].mean() == pytest.approx(200 * (0.3 * 5 + 0.7 * wanted.still_fps), rel=0.1)
    assert made[:3600].mean() < made.max() / 20
