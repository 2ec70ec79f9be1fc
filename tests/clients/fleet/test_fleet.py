"""The fleet on servers with known answers and a virtual clock: order, deadlines, outages, and complete counts."""

import asyncio
import json
from dataclasses import replace

import pytest

from clients.errors import RequestTimeout, Sam3ServerError, ServerUnavailable
from clients.fleet.camera import FIRST_PAUSE_S, Camera
from clients.fleet.config import CameraConfig
from clients.fleet.endpoint import Endpoint
from clients.fleet.fleet import run_fleet, status_line, watch
from clients.fleet.pool import Pool
from clients.fleet.zones import Zone
from clients.outputs.files import JsonLines
from clients.outputs.records import answer_record
from tests.clients.fleet.virtual import VirtualPolicy, VirtualReader

BASE = CameraConfig("camera", "none", ("blue square", "red circle"), (0.5, 0.5))


@pytest.fixture(scope="module")
def event_loop_policy():
    return VirtualPolicy()


class Server:
    """Answers after `seconds`, or raises what `trouble(n)` returns for the n-th request; counts requests in flight."""

    def __init__(self, found, seconds=0.0, trouble=lambda n: None):
        self.found, self.seconds, self.trouble = found, seconds, trouble
        self.requests = self.busy = self.most = 0
        self.up = True
        self.classes, self.images = [], []

    async def detect(self, image, classes, **options):
        self.requests += 1
        n = self.requests
        self.classes.append(tuple(classes))
        self.images.append(image)
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            seconds = self.seconds(n) if callable(self.seconds) else self.seconds
            await asyncio.sleep(seconds)
            if not self.up:
                raise ServerUnavailable("away")
            if error := self.trouble(n):
                raise error
            return self.found
        finally:
            self.busy -= 1

    async def ready(self):
        return self.up

    async def close(self):
        pass


def camera(frames=10, live=False, pause=0.005, limit=None, **options):
    return Camera(replace(BASE, **options), VirtualReader(frames, live, pause), limit)


def pool(*servers, in_flight=32):
    endpoints = [Endpoint(lambda model, s=server: s, f"server {i}") for i, server in enumerate(servers)]
    return Pool(endpoints, in_flight, probe_every=0.01)


async def run(cameras, servers, seconds=None):
    """Runs the fleet; returns the summary and the answers by camera."""
    answers, stop = {c.config.name: [] for c in cameras}, asyncio.Event()
    if seconds:
        asyncio.get_running_loop().call_later(seconds, stop.set)

    def keep(c, answer):
        answers[c.config.name].append(answer)

    summary = await run_fleet(cameras, servers, keep, stop)
    for each in summary["each"]:
        assert each["read"] == each["answered"] + sum(each["dropped"].values()) + sum(each["failed"].values())
    assert summary["read"] == summary["answered"] + summary["dropped"] + summary["failed"]
    return summary, answers


async def test_all_frames_of_a_film_are_answered_in_order(detections):
    """Although the server answers every other frame later than the next."""
    server = Server(detections(), seconds=lambda n: 0.02 * (n % 2))
    summary, answers = await run([camera(12, in_flight=3)], pool(server))
    assert [a.frame.index for a in answers["camera"]] == list(range(12))
    assert (summary["answered"], summary["detections"], summary["dropped"], summary["failed"]) == (12, 24, 0, 0)
    assert server.most == 3


async def test_limit(detections):
    """No more than `limit` frames are sent, although more are ready."""
    server = Server(detections())
    summary, _ = await run([camera(12, limit=5, in_flight=3)], pool(server))
    assert (server.requests, summary["answered"]) == (5, 5)


async def test_thresholds_by_class(detections):
    """The answers hold a red circle of 0.9 and a blue square of 0.6."""
    _, answers = await run([camera(1, thresholds=(0.7, 0.2))], pool(Server(detections())))
    assert answers["camera"][0].found.labels == ("red circle",)


async def test_late_answers_are_discarded_and_counted(detections):
    server = Server(detections(), seconds=lambda n: 0.4 if n == 2 else 0.0)
    summary, answers = await run([camera(4, deadline_s=0.2, in_flight=4)], pool(server))
    assert [a.outcome for a in answers["camera"]] == ["answered", "late", "answered", "answered"]
    assert answers["camera"][1].latency_ms == pytest.approx(400)
    assert (summary["answered"], summary["dropped_by"]) == (3, {"late": 1})


async def test_failures_are_counted_by_kind(detections):
    trouble = {1: RequestTimeout("slow"), 3: Sam3ServerError("broken inside")}
    summary, answers = await run([camera(4, in_flight=1)], pool(Server(detections(), trouble=trouble.get)))
    assert summary["failed_by"] == {"timeout": 1, "server_error": 1}
    assert [a.outcome for a in answers["camera"]] == ["timeout", "answered", "server_error", "answered"]
    assert summary["each"][0]["error"] == "broken inside"


async def test_a_camera_whose_frames_fail_sends_more_slowly(detections):
    server = Server(detections(), trouble=lambda n: Sam3ServerError("broken inside"))
    summary, _ = await run([camera(5, in_flight=1)], pool(server))
    # the pause before a frame is known to have failed is missing, the others double
    assert summary["seconds"] >= FIRST_PAUSE_S * (1 + 2 + 4)


async def test_a_queue_longer_than_the_deadline_is_not_filled(detections):
    """A server that takes one frame after the other, 10 ms each. Twelve cameras with four frames in flight would wait
    480 ms; the deadline is 100 ms."""
    server, turn = Server(detections()), asyncio.Lock()

    async def detect(*_, **__):
        async with turn:
            await asyncio.sleep(0.01)
        return server.found

    server.detect = detect
    cameras = [camera(10_000, live=True, name=f"c{i}", in_flight=4, deadline_s=0.1) for i in range(12)]
    servers = pool(server, in_flight=48)
    summary, answers = await run(cameras, servers, seconds=3.0)
    assert servers.endpoints[0].limit < 20
    last = [each[-1].outcome for each in answers.values()]
    assert last.count("answered") >= 6
    assert summary["answered"] > summary["dropped_by"].get("late", 0)


async def test_one_impossible_deadline_does_not_throttle_the_others(detections):
    cameras = [camera(10_000, live=True, name=f"c{i}", deadline_s=1e-6 if i == 0 else 10.0) for i in range(8)]
    servers = pool(Server(detections(), seconds=0.01), in_flight=16)
    summary, _ = await run(cameras, servers, seconds=0.5)
    assert servers.endpoints[0].limit == 16
    assert [each["answered"] > 0 for each in summary["each"]] == [False] + [True] * 7


async def test_cameras_wait_for_a_server_that_went_away(detections, caplog):
    server = Server(detections(), seconds=0.001)
    loop = asyncio.get_running_loop()
    loop.call_later(0.2, setattr, server, "up", False)
    loop.call_later(0.6, setattr, server, "up", True)
    servers = pool(server)
    summary, answers = await run([camera(10_000, live=True)], servers, seconds=1.2)
    outcomes = [a.outcome for a in answers["camera"]]
    gap = outcomes.index("unavailable")
    assert "answered" in outcomes[:gap]
    assert "answered" in outcomes[gap:]
    assert 1 <= summary["failed_by"]["unavailable"] <= 2  # the frames in flight, and not every frame of the outage
    assert servers.endpoints[0].outages == 1
    assert [r.getMessage().partition(";")[0] for r in caplog.records] == [
        "server 0 does not answer (away)",
        "server 0 answers again",
    ]
    indices = [a.frame.index for a in answers["camera"]]
    assert indices == sorted(set(indices))


async def test_another_server_takes_over(detections):
    first, second = Server(detections()), Server(detections())
    first.up = False
    summary, _ = await run([camera(20)], pool(first, second))
    assert summary["answered"] >= 18
    assert second.requests >= 18


async def test_work_is_spread_over_servers(detections):
    servers = [Server(detections(), seconds=0.005) for _ in range(2)]
    await run([camera(20, name=f"c{i}") for i in range(4)], pool(*servers))
    assert min(s.requests for s in servers) >= 20


async def test_stopping_counts_the_frames_in_flight(detections):
    summary, _ = await run([camera(50, in_flight=2)], pool(Server(detections(), seconds=30)), seconds=0.2)
    assert summary["answered"] == 0
    assert summary["dropped_by"] == {"stopped": summary["read"]}
    assert summary["read"] >= 2


async def test_new_classes_while_it_runs(detections):
    server = Server(detections(), seconds=0.01)
    yard = camera(10_000, live=True, in_flight=1)
    asyncio.get_running_loop().call_later(
        0.3, lambda: setattr(yard, "config", replace(yard.config, classes=("a", "b")))
    )
    await run([yard], pool(server), seconds=0.6)
    first = server.classes.index(("a", "b"))
    assert set(server.classes[:first]) == {BASE.classes}
    assert set(server.classes[first:]) == {("a", "b")}


async def test_a_missing_source_ends_with_its_reason(detections, tmp_path):
    broken = Camera(replace(BASE, source=str(tmp_path / "none.mp4")))
    summary, _ = await run([broken, camera(3, name="other")], pool(Server(detections())))
    assert [each["answered"] for each in summary["each"]] == [0, 3]
    assert "no file" in summary["each"][0]["error"]


@pytest.mark.parametrize("raw", [False, True], ids=["JPEG", "pixels"])
async def test_frames_are_sent_as_the_configuration_says(detections, film, raw):
    server = Server(detections())
    await run([Camera(replace(BASE, source=str(film), raw=raw))], pool(server))
    assert len(server.images) == 6
    assert all(i.shape == (64, 96, 3) if raw else i.startswith(b"\xff\xd8") for i in server.images)


async def test_json_lines_are_complete(detections, tmp_path):
    yard = camera(3, name="yard")
    _, answers = await run([yard], pool(Server(detections(), trouble={2: RequestTimeout("slow")}.get)))
    lines = JsonLines(tmp_path / "a.jsonl")
    for answer in answers["yard"]:
        lines.write(answer_record(yard, answer))
    text = (tmp_path / "a.jsonl").read_text()
    lines.close()  # each line was whole before
    assert text.endswith("\n")
    first, second, _ = map(json.loads, text.splitlines())
    assert (first["camera"], first["frame"], first["outcome"]) == ("yard", 0, "answered")
    assert [d["label"] for d in first["detections"]] == ["red circle", "blue square"]
    assert (second["outcome"], second["error"]) == ("timeout", "slow")
    assert "detections" not in second


async def test_tracks_and_zone_events_are_in_the_json_lines(detections):
    pytest.importorskip("supervision")
    everywhere = Zone("yard", ((0, 0), (1, 0), (1, 1.01), (0, 1.01)), seconds=0.5, classes=("red circle",))
    yard = camera(12, name="yard", zones=(everywhere,))
    _, answers = await run([yard], pool(Server(detections())))
    lines = [answer_record(yard, answer) for answer in answers["yard"]]
    assert len({tuple(d["track"] for d in line["detections"]) for line in lines[2:]}) == 1
    (event,) = (event for line in lines for event in line.get("events", ()))
    assert (event["zone"], event["label"]) == ("yard", "red circle")
    assert event["track"] == lines[-1]["detections"][0]["track"]


@pytest.mark.parametrize("live", [False, True], ids=["file", "live"])
async def test_stopping_at_once(detections, live):
    summary, _ = await run([camera(100, live=live)], pool(Server(detections(), seconds=0.01)), seconds=0.01)
    assert summary["read"] == summary["answered"] + summary["dropped"]


async def test_a_command_stops_after_its_seconds_and_logs_its_status(detections, caplog):
    caplog.set_level("INFO")
    yard, stop = camera(10_000, live=True, pause=0.5, name="yard"), asyncio.Event()
    summary = await watch([yard], pool(Server(detections())), lambda camera, answer: None, stop, seconds=12.0)
    assert summary["seconds"] == pytest.approx(12.0)
    assert [r.getMessage() for r in caplog.records] == [  # after 5 and 10 seconds
        f"yard: {count} answered, 0 dropped, 0 failed, live" for count in (9, 19)
    ]
    assert status_line([yard]).startswith(f"yard: {summary['answered']} answered")
