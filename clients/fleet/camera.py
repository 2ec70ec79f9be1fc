"""One camera of a fleet: reads frames, sends them to a server, and delivers the answers in order.

A reading thread captures frames, a feeder task sends the newest one as soon as a server has a free slot, and a
deliverer task hands the answers on in the order of the frames. At most `in_flight` frames are under way. An answer that
arrives after the deadline is discarded, but waited for: a server that is behind would only fall further behind if its
cameras sent new frames before it answered. No camera waits for another one.

With `motion`, frames in which nothing moved take their turn too, but not the way to the server: the answer to the frame
before them stands.

Whoever the objects are comes from boxes (`tracks.py`), or with `track: masks` from the server's own tracker
(`following.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from clients.conversation import Tracks
from clients.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    Sam3ServerError,
    ServerUnavailable,
    WrongVersion,
)
from clients.fleet.config import CameraConfig
from clients.fleet.endpoint import Endpoint
from clients.fleet.following import Following
from clients.fleet.pool import Pool
from clients.fleet.request import Answer, Exemplar, detect
from clients.fleet.stats import CameraStats
from clients.fleet.tracks import Tracker
from clients.fleet.turns import RECENT_S, Claim
from clients.fleet.zones import ZoneMonitor
from clients.redact import without_password
from clients.video.motion import MotionGate
from clients.video.reader import CapturedFrame, Reader

GRACE_S = 5.0
"""How long frames in flight are waited for when the fleet is stopped."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 2.0
"""Pauses of a camera whose frames fail, doubled each time: else a server that cannot answer would consume its film."""
USUAL_FPS = 10.0
"""The tracker's frame rate for a camera without `fps`: it only scales how long a lost object keeps its track."""
STILLS = 8
"""Still frames that may wait for the answer that they share: each holds its pixels."""

OUTCOMES = {
    RequestTimeout: "timeout",
    ServerUnavailable: "unavailable",
    InvalidRequest: "refused",
    ModelNotFound: "no_model",
    WrongVersion: "other_version",
}
"""The outcome of a frame by the exception; `server_error` for any other."""

Handler = Callable[["Camera", Answer], Awaitable[None] | None]
"""Called with each answer, in the camera's order. A camera's next answer waits until the handler has returned. What it
raises is counted and named in the camera's account, and the camera goes on."""


class Camera:
    """One camera. `config` and `exemplars` may be replaced while it runs: frames that are sent from then on use the new
    ones, the at most `in_flight` frames under way still the old ones. Each exemplar is of one of `config.classes`; with
    `track: masks` there are none.

    `reader` replaces the one that the configuration describes; `limit` is the most frames that are sent (None: all).
    Raises ImportError where the configuration wants tracks and the package supervision is missing.
    """

    def __init__(self, config: CameraConfig, reader: Reader | None = None, limit: int | None = None) -> None:
        self.config, self.limit = config, limit
        self.exemplars: tuple[Exemplar, ...] = ()
        self.stats = CameraStats(config.name)
        # a tracker whose detector does not look at each frame sees what has stopped when the detector looks again
        tail = config.detect_every - 1 if config.track == "masks" else 0
        self.gate = MotionGate(config.motion, tail) if config.motion else None
        self.reader = reader or Reader(
            config.source,
            fps=config.fps,
            realtime=config.realtime,
            loop=config.loop,
            raw=config.raw,
            transport=config.transport,
            gate=self.gate,
        )
        # without a gate nobody knows whether something moves
        self.claim = Claim(config.least_fps, config.weight, lambda: not self.gate or self.gate.still_s <= RECENT_S)
        self._in_order: asyncio.Queue[asyncio.Task[Answer] | CapturedFrame | None] = asyncio.Queue()
        self._stills = asyncio.Semaphore(STILLS)
        self._asked: tuple[CameraConfig, tuple[Exemplar, ...]] = (config, ())
        self._latest: Answer | None = None  # of those that were sent
        self._requests: set[asyncio.Task[Answer]] = set()
        self._slots = asyncio.Semaphore(config.in_flight)
        self._failures = 0
        self._replaced = 0  # frames of those that the reader replaced, whose reason is known
        self._stopped = asyncio.Event()
        self._following = Following() if config.track == "masks" else None
        matches_boxes = (config.track or config.zones) and self._following is None
        self._tracker = Tracker(config.fps or USUAL_FPS, config.threshold) if matches_boxes else None
        self._zones = ZoneMonitor(config.zones)
        self._feeder: asyncio.Task[None] | None = None

    async def run(self, pool: Pool, handler: Handler) -> None:
        """Runs until the source ends, `limit` frames were sent, or `stop` is called. Frames in flight are waited for,
        after `stop` no longer than `GRACE_S`."""
        self.reader.start()
        self._feeder = asyncio.create_task(self._feed(pool))
        deliverer = asyncio.create_task(self._deliver(handler))
        await asyncio.wait({self._feeder, deliverer}, return_when=asyncio.FIRST_COMPLETED)
        left = self.reader.stop()
        self._in_order.put_nowait(None)
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait({deliverer, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await self._finish(deliverer)
        if self._following is not None:
            await self._following.close(GRACE_S)
        self.stats.read, self.stats.skipped = self.reader.read, self.reader.skipped
        self.stats.dropped, self._replaced = self.dropped, self.reader.replaced
        if left:
            self.stats.dropped["stopped"] += left
        self.stats.error = self.stats.error or self.reader.error
        if not self._feeder.cancelled():
            self._feeder.result()  # raises an unexpected error

    async def _finish(self, deliverer: asyncio.Task[None]) -> None:
        """Waits for the frames in flight, then for their handler, no longer than `GRACE_S` each."""
        await asyncio.wait({deliverer}, timeout=GRACE_S)
        for request in self._requests:
            request.cancel()
        await asyncio.wait({deliverer}, timeout=GRACE_S)
        if not deliverer.done():
            self.stats.handler_failed(TimeoutError("an answer's handler did not return"))
            deliverer.cancel()
            await asyncio.wait({deliverer}, timeout=GRACE_S)
            while not self._in_order.empty():
                self.stats.dropped["stopped"] += self._in_order.get_nowait() is not None
        elif not deliverer.cancelled():
            deliverer.result()

    def stop(self) -> None:
        """Sends no more frames."""
        self._stopped.set()
        if self._feeder is not None:
            self._feeder.cancel()

    @property
    def dropped(self) -> Counter[str]:
        """The frames that were dropped so far, by reason."""
        return self.stats.dropped + Counter(replaced=self.reader.replaced - self._replaced)

    async def _turn(self, pool: Pool) -> Endpoint:
        """A slot at a server, once it is this camera's turn. Newer frames replace older ones meanwhile."""
        before, outages, away = self.reader.replaced, pool.outages, pool.away
        try:
            return await pool.acquire(self._following.home if self._following else None, self.claim)
        finally:
            lost = self.reader.replaced - before
            self._replaced += lost
            if lost:
                self.stats.dropped["no_server" if away or pool.outages > outages else "no_turn"] += lost

    async def _feed(self, pool: Pool) -> None:
        sent = 0
        while (self.limit is None or sent < self.limit) and await self.reader.available():
            if self.gate is not None and await self._left_out(self.gate):
                continue
            await self._slots.acquire()
            endpoint = await self._turn(pool)
            frame = self.reader.take()  # after the waiting, not before: this is the newest frame
            if frame is None:
                pool.release(endpoint)
                self._slots.release()
                continue
            sent += 1
            request = asyncio.create_task(self._request(pool, endpoint, frame))
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)
            self._in_order.put_nowait(request)
            if self._failures:
                await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE_S))

    async def _left_out(self, gate: MotionGate) -> bool:
        """Whether the next frame was still, and takes its turn without having been sent."""
        if not self.reader.still:
            return False
        await self._stills.acquire()
        frame = self.reader.take() if self.reader.still else None  # a newer one may have come
        if frame is None:
            self._stills.release()
            return False
        if self._asked != (self.config, self.exemplars):  # what stands is the answer to another question
            gate.forget()
        self._in_order.put_nowait(frame)
        return True

    async def _request(self, pool: Pool, endpoint: Endpoint, frame: CapturedFrame) -> Answer:
        config, exemplars = self._asked = self.config, self.exemplars
        clock, found = asyncio.get_running_loop().time, None
        try:
            # a frame that has waited too long is not sent: its answer would be later still
            if clock() - frame.captured > config.deadline_s:
                return Answer.now(frame, "late")
            sent = clock()
            if self._following is None:
                found = await pool.ask(endpoint, detect(endpoint, config, exemplars, frame))
            else:
                found = await self._following.frame(pool, endpoint, config, frame)
            self._failures = 0
            share = (clock() - frame.captured) / config.deadline_s
            endpoint.record(share, sent, pool.in_flight, found)
            thresholds = np.array(config.thresholds, np.float32)[found.class_ids]
            return Answer.now(frame, "late" if share > 1 else "answered", found.above(thresholds))
        except Sam3ServerError as error:
            if isinstance(error, ServerUnavailable):
                pool.lost(endpoint, error=error)
            else:
                self._failures += 1
            if isinstance(error, WrongVersion):
                pool.of_another_version(endpoint, error)
            return Answer.now(frame, OUTCOMES.get(type(error), "server_error"), error=str(error))
        except Exception as error:  # an answer that makes no sense must not end the camera
            self._failures += 1
            return Answer.now(frame, "client_error", error=without_password(f"{type(error).__name__}: {error}"))
        finally:
            if found is None and self.gate is not None:
                self.gate.forget()
            pool.release(endpoint)
            self._slots.release()

    async def _deliver(self, handler: Handler) -> None:
        while (turn := await self._in_order.get()) is not None:
            if isinstance(turn, CapturedFrame):
                self._stills.release()
                answer = self._standing(turn)
            else:
                await asyncio.wait({turn})
                self._latest = None if turn.cancelled() else turn.result()
                if self._latest is None:
                    self.stats.dropped["stopped"] += 1
                    continue
                answer = self._latest
            self.stats.count(answer, gated=self.gate is not None)
            try:
                done = handler(self, self._tracked(answer))
                if done is not None:
                    await done
            except Exception as error:  # it must cost neither this camera's next answer nor another camera
                self.stats.handler_failed(error)

    def _standing(self, frame: CapturedFrame) -> Answer:
        """The latest answer, for a frame in which nothing moved since. A late one was too late for its own frame
        only."""
        latest = self._latest
        if latest is None or latest.found is None:
            return Answer.now(frame, "no_answer")
        found = latest.found
        if isinstance(found, Tracks):  # followed, and neither new nor confirmed by the detector
            found = replace(found, track_states=np.ones_like(found.track_states), dropped_objects=0)
        answer = Answer.now(frame, "still", found)
        if answer.latency_ms > self.config.deadline_s * 1e3:
            return Answer.now(frame, "late")
        return replace(answer, answered_frame=latest.frame.index)

    def _tracked(self, answer: Answer) -> Answer:
        """The answer with its tracks and the zones' events; without them where these fail."""
        found = answer.found
        if found is None or not answer.usable:
            return answer
        try:
            if isinstance(found, Tracks):
                tracks = found.track_ids
            elif self._tracker is not None:
                tracks = self._tracker.update(found)
            else:
                return answer
            events = self._zones.update(found, tracks, answer.frame.time_s)
        except Exception as error:
            self.stats.handler_failed(error)
            return answer
        return replace(answer, tracks=tuple(tracks.tolist()), events=tuple(events))
