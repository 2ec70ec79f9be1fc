"""Servers behind Envoy: silences, ids, latencies and targets, and Envoy's configuration for the servers of a run. Envoy
itself is tried in `tests/deploy/`."""

import types

import numpy as np
import pytest

from clients.conversation import Tracks
from perf.bench import fleet, fleet_scenes, gateway
from perf.bench.fleet_scenes import Watch
from tests.clock import Clock


def camera(name):
    return types.SimpleNamespace(config=types.SimpleNamespace(name=name))


def answer(index, found=None, outcome="answered"):
    frame = types.SimpleNamespace(index=index, time_s=float(index))
    return types.SimpleNamespace(frame=frame, outcome=outcome, found=found)


def tracks(visible, hidden=(), restarts=0):
    count = len(visible)
    ids = {"track_ids": np.array(visible, np.int64), "hidden_ids": np.array(hidden, np.int64)}
    return Tracks(
        boxes=np.zeros((count, 4), np.float32),
        scores=np.ones(count, np.float32),
        class_ids=np.zeros(count, np.int32),
        classes=("a",),
        presence=np.ones(1, np.float32),
        frame_size=(10, 10),
        stage_ms={},
        batch=1,
        model="sam3_video_r140",
        latency_ms=1.0,
        mask_bits=np.zeros((0, 0, 0), np.uint8),
        **ids,
        restarts=restarts,
    )


@pytest.mark.parametrize(
    ("begin", "end", "longest"),
    [
        (0.0, 10.0, 4.0),  # of "b", which is answered at 3 and 7
        (7.5, 10.0, 3.0),  # of "b" after its last answer
        (7.5, 8.0, 1.0),
        (1.5, 4.0, 2.0),  # of "a", from its answer at 2: the failed frame at 3 is none
    ],
)
def test_silence_is_that_of_the_camera_that_waits_longest(begin, end, longest):
    clock = Clock()
    watch = Watch(clock)
    for now, name, outcome in (
        *((t, "a", "unavailable" if t == 3 else "answered") for t in range(1, 10)),
        *((t, "b", "answered") for t in (1, 2, 3, 7)),
    ):
        clock.now = float(now)
        watch(camera(name), answer(now, outcome=outcome))
    assert watch.silence(begin, end) == longest


def test_ids_are_compared_where_a_session_began_anew():
    watch = Watch(Clock())
    for index, found in enumerate(
        [tracks([1, 2]), tracks([1, 2, 3]), tracks([1, 4], hidden=[2], restarts=1), tracks([9], restarts=1)]
    ):
        watch(camera("a"), answer(index, found))
    watch(camera("b"), answer(0, tracks([7])))
    assert (watch.known, watch.kept) == (3, 2)


def test_latency_that_envoy_adds():
    direct = [float(ms) for ms in range(101)]
    found = fleet_scenes.spans({"direct": direct, "envoy": [ms + 0.5 for ms in direct]})
    assert found["direct_p95_ms"] == 95
    assert found["envoy_p50_ms"] == 50.5
    assert (found["added_p50_ms"], found["added_p95_ms"]) == (0.5, 0.5)


FINE = [
    {"scene": "added latency", "added_p95_ms": 0.9},
    {"scene": "shared", "spread": 0.1},
    {"scene": "full", "spread_full": 0.4},
    {
        "scene": "killed",
        "longest_silence_s": 3.0,
        "unaccounted": 0,
        "handed_over_twice": 0,
        "agrees": True,
        "ids_before": 5,
        "ids_kept": 5,
    },
]


@pytest.mark.parametrize(
    ("row", "change", "broken"),
    [
        (0, {}, set()),
        (0, {"added_p95_ms": 1.1}, {"added_p95_ms at most 1"}),
        (1, {"spread": 0.11}, {"spread at most 0.1"}),
        (3, {"longest_silence_s": 3.1}, {"longest_silence_s at most 3"}),
        (3, {"unaccounted": 1}, {"every frame accounted for"}),
        (3, {"agrees": False}, {"every frame handed over once"}),
        (3, {"handed_over_twice": 1}, {"every frame handed over once"}),
        (3, {"ids_kept": 4}, {"sessions keep their ids"}),
    ],
    ids=str,
)
def test_targets(row, change, broken):
    rows = [one | (change if number == row else {}) for number, one in enumerate(FINE)]
    assert {name for name, held in fleet.kept(rows).items() if not held} == broken


def test_every_cluster_of_the_file_gets_the_servers_of_the_run():
    servers = [types.SimpleNamespace(grpc_url=f"h:{n}1", http_url=f"h:{n}0", http_port=10 * n) for n in (1, 2)]
    told = gateway.configured(servers, (5, 6, 7), "sam3_r140", {"interval": "9s"})
    clusters = told["static_resources"]["clusters"]
    for cluster in clusters:
        (group,) = cluster["load_assignment"]["endpoints"]
        found = [each["endpoint"]["address"]["socket_address"]["port_value"] for each in group["lb_endpoints"]]
        grpc = cluster["name"].endswith("grpc")
        assert found == ([11, 21] if grpc else [10, 20])
        paths = [check["http_health_check"]["path"] for check in cluster["health_checks"]]
        assert paths == ["/v2/health/live", "/v2/models/sam3_r140/infer"]
        assert all(check["interval"] == "9s" for check in cluster["health_checks"])
        asked = [each["endpoint"].get("health_check_config") for each in group["lb_endpoints"]]
        assert asked == ([{"port_value": 10}, {"port_value": 20}] if grpc else [None, None])
    ports = [each["address"]["socket_address"]["port_value"] for each in told["static_resources"]["listeners"]]
    assert [told["admin"]["address"]["socket_address"]["port_value"], *ports] == [5, 6, 7]
