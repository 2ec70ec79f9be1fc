"""Servers that hang without closing anything, in virtual time: others take over within seconds, one that is only busy
is left alone, one that hangs is tried again at growing intervals, and no frame is lost or counted twice."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from clients.errors import InvalidRequest, ModelNotFound, RequestTimeout, WrongVersion
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.endpoint import FRAME, HEALTH_S, Endpoint
from clients.fleet.fleet import run_fleet
from clients.fleet.pool import LONGEST_PAUSE_S, PATIENCE_S, PATIENCE_TIMES, QUIET_S, UNHEARD, Pool
from tests.clients.fleet.virtual import VirtualPolicy, VirtualReader

TIMEOUT_S = 30.0
NOTICED_S = QUIET_S + UNHEARD * HEALTH_S + QUIET_S
"""Until a server that does not say that it is there is given up."""
CONFIG = CameraConfig("camera", "none", ("blue square", "red circle"), (0.5, 0.5), in_flight=2)


@pytest.fixture(scope="module")
def event_loop_policy():
    return VirtualPolicy()


class Server:
    """Answers after `seconds`. While `frozen` nothing comes of anything; while `stuck` it says that it is there and
    answers no frame. Keeps when it was tried with the small frame, and the frames that it answered."""

    def __init__(self, found, seconds=0.01):
        self.found, self.seconds = found, seconds
        self.frozen, self.stuck = asyncio.Event(), asyncio.Event()
        self.tried, self.asked, self.answered = [], [], 0

    async def _thaw(self, *events):
        while any(event.is_set() for event in events):
            await asyncio.sleep(0.01)

    async def detect(self, image, classes, **options):
        now = asyncio.get_running_loop().time()
        (self.tried if image is FRAME else self.asked).append(now)

        async def answer():
            await asyncio.sleep(self.seconds)
            await self._thaw(self.frozen, self.stuck)
            self.answered += 1
            return self.found

        call = asyncio.ensure_future(answer())
        done, _ = await asyncio.wait({call}, timeout=TIMEOUT_S)
        if not done:
            raise RequestTimeout("no answer")
        return call.result()

    async def ready(self):
        self.asked_for_health = True
        await self._thaw(self.frozen)
        return True

    async def close(self):
        pass


def pool(*servers):
    return Pool([Endpoint(lambda model, s=s: s, f"server {i}") for i, s in enumerate(servers)], 32)


def cameras(count=3, **options):
    return [
        Camera(replace(CONFIG, name=f"c{i}", **options), VirtualReader(10**6, live=True, pause=0.1))
        for i in range(count)
    ]


async def run(fleet, servers, seconds):
    """Runs the fleet; returns the summary and when each camera's answers came, with their outcomes."""
    got, stop, clock = {c.config.name: [] for c in fleet}, asyncio.Event(), asyncio.get_running_loop().time
    asyncio.get_running_loop().call_later(seconds, stop.set)
    summary = await run_fleet(fleet, servers, lambda c, a: got[c.config.name].append((clock(), a)), stop)
    for each in summary["each"]:
        assert each["read"] == each["answered"] + sum(each["dropped"].values()) + sum(each["failed"].values())
        indices = [a.frame.index for _, a in got[each["name"]]]
        assert indices == sorted(set(indices)), "no frame twice"
        assert len(indices) == each["answered"] + sum(each["failed"].values()) + each["dropped"].get("late", 0)
    return summary, got


def longest_silence(times, since):
    late = [t for t, a in times if t >= since and a.outcome == "answered"]
    return max(b - a for a, b in itertools.pairwise([since, *late]))


async def test_a_healthy_server_takes_over_within_seconds(detections):
    frozen, healthy = Server(detections()), Server(detections())
    servers = pool(frozen, healthy)
    asyncio.get_running_loop().call_later(5, frozen.frozen.set)
    summary, got = await run(cameras(), servers, 60)
    for times in got.values():
        assert longest_silence(times, 5.0) < NOTICED_S + 1
    assert servers.endpoints[0].outages == 1
    assert summary["failed_by"] == {"unavailable": len([t for t in frozen.asked if t > 4.9])}
    assert frozen.asked[-1] < 5 + NOTICED_S, "no camera's frame is sent to it any more"


async def test_one_that_thaws_is_used_again(detections):
    frozen, healthy = Server(detections()), Server(detections())
    servers = pool(frozen, healthy)
    loop = asyncio.get_running_loop()
    loop.call_later(5, frozen.frozen.set)
    loop.call_later(20, frozen.frozen.clear)
    summary, _ = await run(cameras(), servers, 90)
    assert frozen.asked[-1] > 80
    assert servers.endpoints[0].outages == 1
    assert frozen.answered > len([t for t in frozen.asked if t < 5])
    assert summary["failed_by"]["unavailable"] <= 6


async def test_one_that_hangs_is_tried_at_growing_intervals(detections):
    """It says that it is there, so it is tried with a small frame; each of those waits for its time-out."""
    stuck, healthy = Server(detections()), Server(detections())
    servers = pool(stuck, healthy)
    asyncio.get_running_loop().call_later(5, stuck.stuck.set)
    await run(cameras(1), servers, 400)
    pauses = [b - a - TIMEOUT_S for a, b in itertools.pairwise(stuck.tried)]
    assert len(pauses) >= 7
    assert pauses == pytest.approx(sorted(pauses), abs=0.05)
    assert pauses[0] == pytest.approx(0.5, abs=0.05)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S, abs=0.05)


async def test_models_that_hang_behind_a_server_that_is_there(detections):
    stuck, healthy = Server(detections()), Server(detections())
    servers = pool(stuck, healthy)
    asyncio.get_running_loop().call_later(5, stuck.stuck.set)
    summary, got = await run(cameras(), servers, 60)
    for times in got.values():
        assert longest_silence(times, 5.0) < PATIENCE_S + 2 * QUIET_S + 1
    assert servers.endpoints[0].outages == 1
    assert set(summary["failed_by"]) == {"unavailable"}


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside a fast one"])
async def test_busy_is_not_dead(detections, alone):
    """Twenty seconds for an answer: it says that it is there, and is left alone."""
    busy = Server(detections(), seconds=20)
    servers = pool(*([busy] if alone else [busy, Server(detections())]))
    summary, _ = await run(cameras(), servers, 120)
    assert busy.asked_for_health
    assert servers.endpoints[0].outages == 0
    assert busy.answered >= 12
    assert summary["failed"] == 0


async def test_a_server_that_slows_down_is_given_time(detections):
    """Three times its usual two seconds are no reason to give it up, though another one is there."""
    slow, other = Server(detections(), seconds=2.0), Server(detections())
    servers = pool(slow, other)
    asyncio.get_running_loop().call_later(20, setattr, slow, "seconds", 2.0 * (PATIENCE_TIMES - 1))
    summary, _ = await run(cameras(), servers, 60)
    assert servers.endpoints[0].outages == 0
    assert summary["failed"] == 0


async def test_cameras_of_the_only_server_wait_for_it(detections):
    frozen = Server(detections())
    servers = pool(frozen)
    loop = asyncio.get_running_loop()
    loop.call_later(5, frozen.frozen.set)
    loop.call_later(15, frozen.frozen.clear)
    summary, got = await run(cameras(), servers, 60)
    assert summary["failed_by"] == {"unavailable": len([t for t in frozen.asked if 4.9 < t < 15])}
    for times in got.values():
        assert [a.outcome for t, a in times if t > 40].count("answered") > 100


async def test_a_first_answer_that_never_comes(detections):
    """Nothing is known of how long its answers take, so the time-out decides."""
    stuck, healthy = Server(detections()), Server(detections())
    stuck.stuck.set()
    servers = pool(stuck, healthy)
    summary, got = await run(cameras(), servers, 100)
    assert servers.endpoints[0].outages == 1
    assert set(summary["failed_by"]) <= {"timeout", "unavailable"}
    for times in got.values():
        assert [a.outcome for t, a in times if t > TIMEOUT_S + 2].count("answered") > 100


async def test_late_answers_of_a_server_that_was_given_up_are_dropped(detections):
    frozen = Server(detections())
    endpoint = Endpoint(lambda model: frozen, "server 0")
    frozen.frozen.set()
    asked = asyncio.ensure_future(endpoint.ask(frozen.detect(b"", [])))
    await asyncio.sleep(0)
    endpoint.give_up("hangs")
    with pytest.raises(ConnectionError, match="server 0 hangs; its frames in flight are given up"):
        await asked
    frozen.frozen.clear()
    await asyncio.sleep(1)
    assert (frozen.answered, endpoint.in_flight, endpoint.calls) == (1, {}, set())


@pytest.mark.parametrize("error", [None, InvalidRequest("boxes[0]: expected"), ModelNotFound("unknown")], ids=str)
async def test_an_answer_is_a_sign_of_life_whatever_it_says(error):
    async def answer():
        await asyncio.sleep(2)
        if error:
            raise error

    endpoint = Endpoint(lambda model: None, "server 0")
    asked = asyncio.ensure_future(endpoint.ask(answer()))
    await asyncio.wait({asked})
    assert asked.exception() is error
    assert endpoint.heard == pytest.approx(asyncio.get_running_loop().time())
    assert endpoint.slowest == pytest.approx(2)


async def test_a_model_that_is_not_there_does_not_keep_a_server_away(detections):
    """One camera asks for a model that the server never had; the others come back with the server."""

    class Missing(Server):
        async def ready(self):
            return False

        async def detect(self, image, classes, **options):
            raise ModelNotFound("unknown model")

    there, missing = Server(detections()), Missing(detections())
    servers = Pool([Endpoint(lambda model: missing if model == "missing" else there, "server 0")], 32)
    loop = asyncio.get_running_loop()
    loop.call_later(5, there.frozen.set)
    loop.call_later(15, there.frozen.clear)
    fleet = [*cameras(1, model="missing"), *cameras(2)[1:]]
    summary, got = await run(fleet, servers, 60)
    assert set(summary["each"][0]["failed"]) == {"no_model"}
    assert [a.outcome for t, a in got["c1"] if t > 30].count("answered") > 100


class Newer(Server):
    """Of another version, until it is upgraded."""

    upgraded = False

    async def detect(self, image, classes, **options):
        if not self.upgraded:
            self.tried.append(asyncio.get_running_loop().time())
            raise WrongVersion("other inputs")
        return await super().detect(image, classes, **options)


async def test_a_server_of_another_version_gets_no_frames_until_it_is_of_ours(detections, caplog):
    ours, newer = Server(detections()), Newer(detections())
    asyncio.get_running_loop().call_later(30, setattr, newer, "upgraded", True)
    summary, got = await run(cameras(4), pool(ours, newer), 120)
    assert sum(each["failed"].get("other_version", 0) for each in summary["each"]) <= 4 * CONFIG.in_flight
    assert {a.outcome for t, a in itertools.chain(*got.values()) if 5 < t < 30} == {"answered"}
    assert newer.answered > 100
    assert "is of another version (other inputs); its cameras wait or use the other servers" in caplog.text


async def test_alone_a_server_of_another_version_is_asked_on(detections):
    """Behind its address there may be others."""
    newer = Newer(detections())
    asyncio.get_running_loop().call_later(30, setattr, newer, "upgraded", True)
    servers = pool(newer)
    _, got = await run(cameras(1), servers, 60)
    assert {a.outcome for t, a in got["c0"] if t < 30} == {"other_version"}
    assert servers.endpoints[0].outages == 0
    assert [a.outcome for t, a in got["c0"] if t > 35].count("answered") > 100
