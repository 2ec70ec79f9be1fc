"""Cameras that ask for more than the servers answer: who gets what, what is told of it, how much waits at a server."""

import asyncio
from dataclasses import replace

import pytest

from clients.fleet.endpoint import Endpoint
from tests.clients.fleet.test_fleet import Server, camera, pool, run
from tests.clients.fleet.virtual import VirtualPolicy


@pytest.fixture(scope="module")
def event_loop_policy():
    return VirtualPolicy()


async def test_overload_is_shared(detections):
    """Six cameras, one of which is five times as fast as the others, on a server that takes two frames at once."""
    cameras = [camera(10_000, live=True, pause=0.001 if i == 0 else 0.005, name=f"c{i}") for i in range(6)]
    server = Server(detections(), seconds=0.01)
    summary, _ = await run(cameras, pool(server, in_flight=2), seconds=1.0)
    assert server.most == 2
    assert summary["answered"] == pytest.approx(200, rel=0.05)  # two at once, each for a hundredth of a second
    assert summary["fairness"] >= 0.9
    assert summary["dropped_by"]["no_turn"] > 0


async def test_floors_and_weights_say_who_gets_what(detections):
    """Eight cameras of 200 fps on a server that answers 100 frames a second, one at a time."""
    wanted = [{"weight": 4.0}, {"weight": 2.0}, {"least_fps": 20.0, "weight": 0.1}, *({} for _ in range(5))]
    cameras = [camera(10_000, live=True, name=f"c{i}", **options) for i, options in enumerate(wanted)]
    summary, _ = await run(cameras, pool(Server(detections(), seconds=0.01), in_flight=1), seconds=4.0)
    level = 80 / 11  # what is left of the floor, for a weight of 1
    got = [each["answered"] / 4 for each in summary["each"]]
    assert got == pytest.approx([4 * level, 2 * level, 20, *[level] * 5], rel=0.1)
    assert all(each["dropped"]["no_turn"] > each["dropped"].get("replaced", 0) for each in summary["each"])


async def test_frames_that_wait_for_answers_of_their_own_are_told_from_those_that_wait_for_a_turn(detections):
    only = camera(100, live=True, in_flight=2)
    summary, _ = await run([only], pool(Server(detections(), seconds=0.05)), seconds=2.0)
    assert summary["dropped_by"] == {"replaced": only.reader.replaced}
    assert only.dropped == summary["dropped_by"]  # still, once it has ended


async def test_floors_above_what_the_servers_answer_are_told_of(detections, caplog):
    cameras = [camera(10_000, live=True, name=f"c{i}", least_fps=40.0 * (2 - i)) for i in range(2)]
    summary, _ = await run(cameras, pool(Server(detections(), seconds=0.01), in_flight=1), seconds=30.0)
    got = [each["answered"] / 30 for each in summary["each"]]
    assert got == pytest.approx([100 * 2 / 3, 100 / 3], rel=0.05)
    (told,) = [record.message for record in caplog.records if "floors" in record.message]
    assert "each camera gets about 8" in told
    assert "lower them, or add a server" in told


async def test_slots_are_given_in_the_order_of_the_requests(detections):
    slots = pool(Server(detections()), in_flight=1)
    held, order = await slots.acquire(), []

    async def request(name):
        endpoint = await slots.acquire()
        order.append(name)
        slots.release(endpoint)

    tasks = [asyncio.create_task(request(i)) for i in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    slots.release(held)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert slots.endpoints[0].busy == 0


class Queueing(Server):
    """Answers one frame after the other, and says in its answers how long each of them waited; `away_s` seconds of the
    way to it and back."""

    def __init__(self, found, seconds, away_s=0.0):
        super().__init__(found, seconds)
        self.away_s, self.line = away_s, asyncio.Lock()

    async def detect(self, image, classes, **options):
        clock = asyncio.get_running_loop().time
        sent = clock()
        await asyncio.sleep(self.away_s)
        came = clock()
        async with self.line:
            begun = clock()
            found = await super().detect(image, classes, **options)
            stages = {"queue": 1e3 * (begun - came), "total": 1e3 * (clock() - came)}
        return replace(found, stage_ms=stages, latency_ms=1e3 * (clock() - sent))


@pytest.mark.parametrize("away_s", [0.0, 0.02], ids=["near", "far"])
async def test_no_more_frames_wait_at_a_server_than_keep_it_busy(detections, away_s):
    """So that weights hold without a deadline too, although it could have thirty-two frames at once."""
    options = {"live": True, "pause": 0.02, "in_flight": 8}
    cameras = [camera(1500, name=f"c{i}", weight=5.0 if i == 0 else 1.0, **options) for i in range(8)]
    server = Queueing(detections(), 0.01, away_s)
    servers = pool(server, in_flight=32)
    summary, _ = await run(cameras, servers, seconds=20.0)
    assert summary["answered"] == pytest.approx(2000, rel=0.02)  # it was never idle
    first, *others = (each["answered"] for each in summary["each"])
    assert first == pytest.approx(5 * sum(others) / 7, rel=0.1)
    assert servers.endpoints[0].limit <= 8


async def test_a_network_that_varies_is_no_queue(detections):
    """A GPU that needs 6 ms for a frame, which come after 20 to 50 ms."""
    there = Endpoint(lambda model: None, "server", limit=4.0)
    for i in range(600):
        found = replace(detections(), latency_ms=26.0 + 5 * (i % 7), stage_ms={"queue": 0.0, "total": 6.0})
        there.record(0.0, 0.0, 32, found)
    assert there.limit == 32


async def test_a_server_that_is_far_away_gets_as_many_frames_as_it_can_answer(detections):
    """What a frame spends on its way is no waiting."""
    there = Endpoint(lambda model: None, "server", limit=4.0)
    found = replace(detections(), latency_ms=500.0, stage_ms={"queue": 0.0, "total": 10.0})
    for _ in range(600):
        there.record(0.0, 0.0, 32, found)
    assert there.limit == 32
