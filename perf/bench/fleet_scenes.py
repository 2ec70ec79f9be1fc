"""What is measured of servers behind Envoy: what Envoy adds to an answer, how frames are shared, and what cameras
notice of a server that is killed, frozen or upgraded."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np

from clients.connection import AsyncClient, Client
from clients.conversation import Tracks
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.request import Answer
from clients.fleet.stats import percentiles
from demo import steps
from ensemble.server.requirements import ServerError
from perf.bench.failing_servers import FailingServer
from perf.bench.gateway import Gateway
from perf.bench.hard_soak import Ledger

TROUBLES: Mapping[str, Callable[[FailingServer], None]] = {
    "killed": FailingServer.server_is_killed,
    "frozen": FailingServer.server_freezes,
    "upgraded": FailingServer.server_is_upgraded,
}
BEFORE_S = 8.0
"""Of a scene, until a server is hurt."""
SHARED_LOAD, SHARED_TIMES = 0.6, 4
"""Part of the frames a second that full servers answer, with which sharing is measured, and for how many times as long:
Envoy chooses by chance among servers with equally many frames under way, which a few hundred frames would show."""
BACK_S = 120.0
"""A server that was hurt is waited for so long."""
log = logging.getLogger(__name__)


class Watch(Ledger):
    """What was handed over of each camera, when, and which objects a session still had after it began anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.arrivals: dict[str, list[float]] = defaultdict(list)
        self.known = self.kept = 0
        self._clock = clock
        self._seen: dict[str, Tracks] = {}

    def __call__(self, camera: Camera, answer: Answer) -> None:
        super().__call__(camera, answer)
        if answer.outcome != "answered":
            return
        name, found = camera.config.name, answer.found
        self.arrivals[name].append(self._clock())
        if isinstance(found, Tracks):
            before = self._seen.get(name)
            if before is not None and found.restarts > before.restarts:
                ids = set(before.track_ids.tolist())
                self.known += len(ids)
                self.kept += len(ids & {*found.track_ids.tolist(), *found.hidden_ids.tolist()})
            self._seen[name] = found

    def silence(self, begin: float, end: float) -> float:
        """Seconds of the longest time without an answer of one camera that lasted beyond `begin`, up to `end`."""
        longest = 0.0
        for times in self.arrivals.values():
            earlier = [t for t in times if t <= begin][-1:]
            points = [*earlier, *(t for t in times if begin < t < end), end]
            longest = max([longest, *(b - a for a, b in itertools.pairwise(points))])
        return longest


def added(
    direct: str, through: str, model: str, jpeg: bytes, classes: Sequence[str], requests: int
) -> list[dict[str, Any]]:
    """Milliseconds of one request after the other, at the same server directly and through Envoy in turn: of frames,
    and of the question whether a model is ready, which takes no work of the server's."""
    with Client(direct, model=model) as straight, Client(through, model=model) as around:
        ways = {"direct": straight, "envoy": around}
        questions: dict[str, Callable[[Client], object]] = {
            "a frame": lambda client: client.detect(jpeg, classes),
            "whether a model is ready": lambda client: client.ready(),
        }
        rows = []
        for question, ask in questions.items():
            took: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(-5, requests):
                for way in sorted(ways, reverse=number % 2 == 1):
                    start = time.perf_counter()
                    ask(ways[way])
                    if number >= 0:  # the first ones open connections
                        took[way].append((time.perf_counter() - start) * 1e3)
            rows.append(begun("added latency", 1) | {"question": question, "requests": requests} | spans(took))
            log.info("%s", rows[-1])
    return rows


def spans(took: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The percentiles of both ways, and how much Envoy's are above the direct ones."""
    found = {way: percentiles(times) for way, times in took.items()}
    row = {f"{way}_p{p}_ms": found[way][i] for way in found for i, p in enumerate((50, 95))}
    row |= {f"added_p{p}_ms": found["envoy"][i] - found["direct"][i] for i, p in enumerate((50, 95))}
    return {name: round(value, 3) for name, value in row.items()}


async def shared(
    gateway: Gateway, model: str, jpeg: bytes, classes: Sequence[str], seconds: float, at_once: int
) -> list[dict[str, Any]]:
    """How many frames each server answered over one connection, as two rows: "full" with `at_once` of them under way
    all the time, then "shared" with `SHARED_LOAD` of the frames a second that this gave, in `SHARED_TIMES` the time.
    `spread` is the most of a server less the fewest, over their mean; that of servers that are full also tells how
    unlike the processor ran them, and is `spread_full`."""
    async with AsyncClient(gateway.grpc, model=model) as client:
        stop = time.monotonic() + seconds

        async def ask_on() -> None:
            while time.monotonic() < stop:
                await client.detect(jpeg, classes)

        async def ask_at(when: float) -> None:
            await asyncio.sleep(when - time.monotonic())
            await client.detect(jpeg, classes)

        full = await counted(gateway, "full", seconds, [ask_on() for _ in range(at_once)])
        fps, start, longer = full["fps"] * SHARED_LOAD, time.monotonic(), seconds * SHARED_TIMES
        at = [ask_at(start + number / fps) for number in range(int(longer * fps))]
        part = await counted(gateway, "shared", longer, at)
    full["spread_full"] = full.pop("spread")
    return [full | {"at_once": at_once}, part]


async def counted(
    gateway: Gateway, scene: str, seconds: float, questions: Sequence[Coroutine[Any, Any, None]]
) -> dict[str, Any]:
    """The row of these questions, asked side by side."""
    before = gateway.counted("servers_grpc", "rq_success")
    await asyncio.gather(*questions)
    after = gateway.counted("servers_grpc", "rq_success")
    each = [after[server] - before[server] for server in after]
    row = begun(scene, len(each)) | {"answered": sum(each), "each": each, "fps": round(sum(each) / seconds, 2)}
    row["spread"] = round((max(each) - min(each)) / float(np.mean(each)), 4)
    log.info("%s", row)
    return row


def cameras_of(films: Sequence[steps.Film], front: str, options: Namespace) -> tuple[CameraConfig, ...]:
    """Cameras of pictures, and as many of videos as asked for, which take turns at the films."""
    found = []
    for number in range(options.cameras + options.videos):
        film, video = films[number % len(films)], number >= options.cameras
        more: dict[str, Any] = {}
        if video:
            more = {"track": "masks", "masks": "bits", "in_flight": 1, "detect_every": steps.DETECT_EVERY}
        found.append(
            CameraConfig(
                f"{'video' if video else 'camera'} {number + 1}",
                str(film.video),
                tuple(film.classes),
                (0.5,) * len(film.classes),
                model=front.replace("sam3_", "sam3_video_") if video else front,
                fps=options.fps,
                realtime=True,
                loop=True,
                **more,
            )
        )
    return tuple(found)


async def hurt(
    trouble: str, gateway: Gateway, servers: Sequence[FailingServer], configs: Sequence[CameraConfig], seconds: float
) -> dict[str, Any]:
    """Cameras for so long, while the server with the most frames of videos is hurt; it is back when this returns."""
    await settled(gateway, len(servers))
    before = gateway.counted("sessions_grpc", "rq_total")
    watch, stop, start = Watch(), asyncio.Event(), time.monotonic()

    async def act() -> float:
        await asyncio.sleep(BEFORE_S)
        now = gateway.counted("sessions_grpc", "rq_total")
        most = max(now, key=lambda address: now[address] - before[address])
        log.info("%s is %s", most, trouble)
        hurt_at = time.monotonic()
        (one,) = (server for server in servers if server.server.grpc_url == most)
        await asyncio.to_thread(TROUBLES[trouble], one)
        return hurt_at

    acting = asyncio.create_task(act())
    asyncio.get_running_loop().call_later(seconds, stop.set)
    pool = open_pool(FleetConfig(tuple(configs), (gateway.grpc,)))
    summary = await run_fleet([Camera(config) for config in configs], pool, watch, stop)
    end = start + seconds
    hurt_at = await acting
    row = begun(trouble, len(servers)) | account(summary, watch)
    row["usual_silence_s"] = round(watch.silence(start + BEFORE_S / 2, hurt_at), 2)
    row["longest_silence_s"] = round(watch.silence(hurt_at, end), 2)
    log.info("%s", row)
    await settled(gateway, len(servers))
    return row


def begun(scene: str, servers: int) -> dict[str, Any]:
    """A row's beginning; `load` is the machine's: what else runs slows servers and cameras down."""
    return {"scene": scene, "servers": servers, "load": round(os.getloadavg()[0], 1)}


def account(summary: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """What became of all frames, and of the sessions' objects."""
    names = (
        "cameras",
        "seconds",
        "read",
        "answered",
        "dropped",
        "failed",
        "dropped_by",
        "failed_by",
        "fps",
        "p50_ms",
        "p95_ms",
    )
    missing = summary["read"] - summary["answered"] - summary["dropped"] - summary["failed"]
    row = {name: summary[name] for name in names} | {"unaccounted": missing, "handed_over_twice": watch.twice}
    row["agrees"] = all(watch.agrees(each) for each in summary["each"])
    sessions = sum(each.get("restarts", 0) for each in summary["each"])
    return row | {"sessions_begun_anew": sessions, "ids_before": watch.known, "ids_kept": watch.kept}


async def settled(gateway: Gateway, count: int) -> None:
    """Waits until Envoy sends frames to so many servers. Raises ServerError where it does not."""
    deadline = time.monotonic() + BACK_S
    while min(len(gateway.healthy(cluster)) for cluster in ("servers_grpc", "sessions_grpc")) < count:
        if time.monotonic() > deadline:
            raise ServerError(f"expected {count} healthy servers behind Envoy, got {gateway.about('servers_grpc')}")
        await asyncio.sleep(0.2)
