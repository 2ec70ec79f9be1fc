"""The fleet: cameras and servers flow in, every camera's answers flow out in order, and an account of every frame.

Each camera is three things: a reading thread, a feeder that sends the newest frame when it is the camera's turn, and a
deliverer that hands answers on in the order of the frames. A camera has at most `in_flight` frames under way; an answer
that comes after the deadline is discarded, but waited for, since a server that is behind would only fall further behind
if its cameras asked again before it answered. The server's answers never wait for a camera, nor a camera for another
one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clients.connection import AsyncClient
from clients.errors import InvalidRequest, ModelNotFound, RequestTimeout, Sam3ServerError, ServerUnavailable
from clients.fleet.ask import Answer, Exemplar, detect
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.follow import Follower
from clients.fleet.pool import Endpoint, Pool
from clients.fleet.stats import CameraStats, summary
from clients.video.reader import CapturedFrame, Reader

GRACE_S = 5.0
"""What frames under way get to come home when the fleet is stopped."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 2.0
"""A camera whose frames fail sends more slowly: a film would be used up on a server that cannot answer."""

KINDS = {
    RequestTimeout: "timeout",
    ServerUnavailable: "unavailable",
    InvalidRequest: "refused",
    ModelNotFound: "no_model",
}
"""What failures are called in the account; any other one is a `server_error`."""


Handler = Callable[["Camera", Answer], Awaitable[None] | None]
"""Told of each frame that was sent, in the camera's order. A camera's next answer waits until the handler is done."""


class Camera:
    """One camera of the fleet. `config` and `exemplars` may be replaced while it runs: the next frame that is sent is
    asked with the new ones, so that at most the `in_flight` frames under way are still answered for the old. Each
    exemplar is of one of `config.classes`.
    """

    def __init__(self, config: CameraConfig, reader: Reader | None = None) -> None:
        self.config = config
        self.exemplars: tuple[Exemplar, ...] = ()
        self.tally = CameraStats(config.name)
        self.reader = reader or Reader(config.source, fps=config.fps, realtime=config.realtime, loop=config.loop)
        self._under_way: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
        self._asking: set[asyncio.Task[Answer]] = set()
        self._places = asyncio.Semaphore(config.in_flight)
        self._failures = 0
        self._follow = Follower(config) if config.track or config.zones else None
        self._feeder: asyncio.Task[None] | None = None

    async def run(self, pool: Pool, handler: Handler) -> None:
        """Until the source ends or `stop`: then what is under way is waited for, after `stop` no longer than
        `GRACE_S`."""
        self.reader.start()
        self._feeder = asyncio.create_task(self._feed(pool))
        deliverer = asyncio.create_task(self._deliver(handler))
        await asyncio.wait({self._feeder, deliverer}, return_when=asyncio.FIRST_COMPLETED)
        left = self.reader.stop()
        self._under_way.put_nowait(None)
        if self._feeder.cancelled():
            await asyncio.wait({deliverer}, timeout=GRACE_S)
            for task in self._asking:
                task.cancel()
        await deliverer
        self.tally.read = self.reader.read
        for reason, count in (("replaced", self.reader.replaced), ("stopped", left)):
            if count:
                self.tally.dropped[reason] += count
        self.tally.error = self.tally.error or self.reader.error
        if not self._feeder.cancelled():
            self._feeder.result()  # raises what nobody foresaw

    def stop(self) -> None:
        """Nothing more is sent."""
        if self._feeder is not None:
            self._feeder.cancel()

    async def _feed(self, pool: Pool) -> None:
        while await self.reader.available():
            await self._places.acquire()
            place = await pool.acquire()
            picture = self.reader.take()  # now, and not before the waiting: this is the newest
            if picture is None:
                pool.release(place)
                self._places.release()
                continue
            task = asyncio.create_task(self._ask(pool, place, picture))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            self._under_way.put_nowait(task)
            if self._failures:
                await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE_S))

    async def _ask(self, pool: Pool, place: Endpoint, picture: CapturedFrame) -> Answer:
        config, exemplars = self.config, self.exemplars
        try:
            # what waited too long is not sent: its answer would come later still
            if time.monotonic() - picture.captured > config.deadline_s:
                return Answer.to(picture, "late")
            sent = time.monotonic()
            found = await detect(place, config, exemplars, picture)
            self._failures = 0
            share = (time.monotonic() - picture.captured) / config.deadline_s
            place.note(share, sent, pool.in_flight)
            thresholds = np.array(config.thresholds, np.float32)[found.class_ids]
            return Answer.to(picture, "late" if share > 1 else "answered", found.above(thresholds))
        except Sam3ServerError as error:
            if isinstance(error, ServerUnavailable):
                pool.lost(place)
            else:
                self._failures += 1
            return Answer.to(picture, KINDS.get(type(error), "server_error"), error=str(error))
        finally:
            pool.release(place)
            self._places.release()

    async def _deliver(self, handler: Handler) -> None:
        while (task := await self._under_way.get()) is not None:
            await asyncio.wait({task})
            if task.cancelled():
                self.tally.dropped["stopped"] += 1
                continue
            answer = task.result()
            self._count(answer)
            if self._follow and answer.found is not None and answer.outcome == "answered":
                tracks, events = self._follow(answer.found, answer.picture.time_s)
                answer = replace(answer, tracks=tracks, events=events)
            done = handler(self, answer)
            if done is not None:
                await done

    def _count(self, answer: Answer) -> None:
        tally = self.tally
        if answer.outcome == "answered":
            tally.answered += 1
            tally.detections += len(answer.found or ())
            tally.latencies_ms.append(answer.latency_ms)
        elif answer.outcome == "late":
            tally.dropped["late"] += 1
        else:
            tally.failed[answer.outcome] += 1
            tally.error = answer.error


def open_pool(config: FleetConfig, say: Callable[[str], None] = lambda line: None) -> Pool:
    """The configuration's servers. Connects nowhere yet."""

    def place(address: str) -> Endpoint:
        return Endpoint(
            lambda model: AsyncClient(address, protocol=config.protocol, model=model, timeout=config.timeout_s), address
        )

    return Pool([place(address) for address in config.servers], config.in_flight, say)


async def run_fleet(
    cameras: Sequence[Camera], pool: Pool, handler: Handler, stop: asyncio.Event, *, keep: bool = False
) -> dict[str, Any]:
    """All cameras until their sources end (unless `keep`) or `stop` is set; the summary of `clients/fleet/stats.py`,
    with an account per camera.
    """
    start = time.monotonic()
    running = [asyncio.create_task(camera.run(pool, handler)) for camera in cameras]
    finished = asyncio.gather(*running)
    if not keep:
        finished.add_done_callback(lambda _: stop.set())
    try:
        await stop.wait()
        for camera in cameras:
            camera.stop()
        await finished
    finally:
        seconds = time.monotonic() - start
        await pool.close()
    tallies = [camera.tally for camera in cameras]
    return summary(tallies, seconds) | {"each": [tally.record(seconds) for tally in tallies]}
