"""One server of a fleet: its clients, its frames in flight, how many it may have, and whether it still answers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from clients.connection import AsyncClient
from clients.detections import Detections
from clients.errors import InvalidRequest, RequestTimeout, Sam3ServerError, ServerUnavailable
from ensemble.video.variant import is_video_name

TOO_LATE, IN_TIME = 0.3, 0.1
"""Shares of late answers above which a server's limit is lowered, and below which it is raised."""
ROOM = 0.6
"""Only answers that took less than this share of their deadline raise the limit."""
LATEST_WEIGHT = 0.1
"""Weight of the latest answer in the moving averages of late answers and of waiting."""
LITTLE_WAITING, MUCH_WAITING = 1.0, 2.0
"""How long frames wait at a server, in times of what they are worked on: only below the first its limit is raised,
above the second it is lowered. One batch that waits while another is worked on keeps a server busy; what waits behind
it gains nothing, and comes before frames of cameras whose turn it is."""
LEAST_WORK_MS = 20.0
"""Work below this counts as so much: networks vary by as long as a GPU needs for a frame, and that is no queue."""
NEARER = 1.001
"""By which factor the shortest way to a server is taken for longer with each answer: networks change."""
HEALTH_S = 1.5
"""A server that is there says so within this time, however busy its models are."""
FORGETTING = 0.95
"""What an answer leaves of the slowest one before it."""
FRAME = np.zeros((14, 14, 3), np.uint8)
"""What a server that hung is tried with."""

Found = TypeVar("Found")


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server: a client for each front model in use, its frames in flight, and how often it went away.

    `limit` is how many frames it may have at once. A queue longer than the deadlines makes every answer late, however
    fast the server is, so the limit follows the answers: a third less when too many are late, one less per round when
    frames wait much longer than they are worked on, one more when neither. A single camera whose deadline cannot be met
    does not make many.

    `heard` is when its latest answer came, `slowest` how long the slowest of the latest ones took; both in seconds, on
    the event loop's clock.
    """

    connect: Callable[[str | None], AsyncClient]
    address: str
    clients: dict[str | None, AsyncClient] = field(default_factory=dict)
    busy: int = 0
    limit: float = 1.0
    late: float = 0.0
    waiting: float = 0.0
    way_ms: float = math.inf
    lowered: float = -math.inf
    away: bool = False
    outages: int = 0
    heard: float = 0.0
    slowest: float = 0.0
    search: asyncio.Task[None] | None = field(default=None, repr=False)
    watch: asyncio.Task[None] | None = field(default=None, repr=False)
    in_flight: dict[asyncio.Future[Any], float] = field(default_factory=dict, repr=False)
    calls: set[asyncio.Future[Any]] = field(default_factory=set, repr=False)

    def client(self, model: str | None) -> AsyncClient:
        """The client of that front model; None is the server's only one. gRPC clients share one connection."""
        if model not in self.clients:
            self.clients[model] = self.connect(model)
        return self.clients[model]

    def record(self, share: float, sent: float, largest_limit: int, found: Detections) -> None:
        """Adapts the limit, within 1 and `largest_limit`, to an answer that took `share` of its deadline (above 1: it
        was late). `sent` is when the frame was sent, on the event loop's clock.
        """
        self.late += LATEST_WEIGHT * ((share > 1) - self.late)
        self.waiting += LATEST_WEIGHT * (self._waited(found) - self.waiting)
        # an answer to a frame that was in flight when the limit was lowered is no reason to lower it again
        if sent <= self.lowered:
            return
        if share > 1 and self.late > TOO_LATE:
            self._lower(self.limit * 2 / 3)
        elif self.waiting > MUCH_WAITING:
            self._lower(self.limit - 1)
        elif share < ROOM and self.late < IN_TIME and self.waiting < LITTLE_WAITING:
            self.limit = min(float(largest_limit), self.limit + 1 / self.limit)

    def _lower(self, limit: float) -> None:
        self.limit, self.lowered = max(1.0, limit), asyncio.get_running_loop().time()

    def _waited(self, found: Detections) -> float:
        """How long a frame waited at the server, in times of what it was worked on; 0 where the answer does not say.
        What of the round trip the server knows nothing of is its way, and beyond the shortest one more waiting."""
        total, queue = found.stage_ms.get("total", 0.0), found.stage_ms.get("queue", 0.0)
        outside = found.latency_ms - total
        self.way_ms = min(self.way_ms * NEARER, outside)
        return (queue + outside - self.way_ms) / max(LEAST_WORK_MS, total - queue) if total > 0 else 0.0

    async def ask(self, question: Coroutine[Any, Any, Found]) -> Found:
        """The answer to a request to this server. Raises ServerUnavailable as soon as the server is given up; the
        request itself is never taken back (`clients/calls.py` says why), and what still comes of it is dropped."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Found] = loop.create_future()
        sent = self.in_flight[outcome] = loop.time()

        def done(call: asyncio.Future[Found]) -> None:
            self.calls.discard(call)
            error = asyncio.CancelledError() if call.cancelled() else call.exception()
            if not isinstance(error, (RequestTimeout, ServerUnavailable, asyncio.CancelledError)):
                self.heard = loop.time()
                self.slowest = max(self.slowest * FORGETTING, self.heard - sent)
            if outcome.done():
                return
            if error is None:
                outcome.set_result(call.result())
            else:
                outcome.set_exception(error)

        call = asyncio.ensure_future(question)
        self.calls.add(call)
        call.add_done_callback(done)
        try:
            return await outcome
        finally:
            del self.in_flight[outcome]

    def give_up(self, reason: str) -> None:
        """Ends the waiting for all frames in flight."""
        for outcome in self.in_flight:
            if not outcome.done():
                outcome.set_exception(ServerUnavailable(f"{self.address} {reason}; its frames in flight are given up"))

    @property
    def quiet_since(self) -> float:
        """Since when frames are in flight without any answer; only while there are some."""
        return max(self.heard, min(self.in_flight.values()))

    async def ready(self) -> bool:
        """Whether it says within `HEALTH_S` that one of the front models in use is loaded. All load before it answers
        at all; one that it never had must not keep the others' cameras from it."""
        for client in list(self.clients.values()):
            try:
                if await asyncio.wait_for(client.ready(), HEALTH_S):
                    return True
            except (TimeoutError, asyncio.TimeoutError):
                return False
        return not self.clients

    async def answers(self) -> bool:
        """Whether one of its front models answers a frame."""
        for model, client in list(self.clients.items()):
            try:
                if model and is_video_name(model):
                    return await _follows(client, model)
                await client.detect(FRAME, ["object"])
                return True
            except Sam3ServerError:
                continue
        return not self.clients


async def _follows(client: AsyncClient, model: str) -> bool:
    """True once a video front model answers a session's only frame; that its memory is full is an answer too."""
    with contextlib.suppress(InvalidRequest):
        async with client.session(["object"], model=model, max_objects=1, mask_format="none") as session:
            await session.frame(FRAME)
    return True
