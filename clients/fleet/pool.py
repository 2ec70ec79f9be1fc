"""The servers of a fleet, and the queue of cameras that wait for a free slot at one of them.

Each server has a number of slots: the frames that it processes at once. Slots are given in the order of the requests,
and a camera requests one for one frame at a time, so under overload every camera gets its share. A server that does not
answer gets no frames until it answers again; meanwhile the other servers take its share, and where there is no other
the cameras wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from clients.connection import AsyncClient

logger = logging.getLogger(__name__)

PROBE_EVERY_S = 0.5
"""Between two probes of a server that is away: with gRPC's own second it is found within two."""
TOO_LATE, IN_TIME = 0.3, 0.1
"""Shares of late answers above which a server's limit is lowered, and below which it is raised."""
ROOM = 0.6
"""Only answers that took less than this share of their deadline raise the limit."""
FIRST_LIMIT = 8
"""Frames that a server gets at once before its answers have shown how many it can handle."""
LATEST_WEIGHT = 0.1
"""Weight of the latest answer in the moving average of late answers."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server: a client for each front model in use, its frames in flight, and how often it went away.

    `limit` is how many frames it may have at once. A queue longer than the deadlines makes every answer late, however
    fast the server is, so the limit follows the answers: a third less when too many are late, one more per round when
    few are. A single camera whose deadline cannot be met does not make many.
    """

    connect: Callable[[str | None], AsyncClient]
    address: str
    clients: dict[str | None, AsyncClient] = field(default_factory=dict)
    busy: int = 0
    limit: float = 1.0
    late: float = 0.0
    lowered: float = 0.0
    away: bool = False
    outages: int = 0
    search: asyncio.Task[None] | None = field(default=None, repr=False)

    def client(self, model: str | None) -> AsyncClient:
        """The client of that front model; None is the server's only one. gRPC clients share one connection."""
        if model not in self.clients:
            self.clients[model] = self.connect(model)
        return self.clients[model]

    def record(self, share: float, sent: float, largest_limit: int) -> None:
        """Adapts the limit, within 1 and `largest_limit`, to an answer that took `share` of its deadline (above 1: it
        was late). `sent` is when the frame was sent, on the event loop's clock.
        """
        self.late += LATEST_WEIGHT * ((share > 1) - self.late)
        # a late answer to a frame that was in flight when the limit was lowered is no reason to lower it again
        if share > 1 and self.late > TOO_LATE and sent > self.lowered:
            self.limit, self.lowered = max(1.0, self.limit * 2 / 3), asyncio.get_running_loop().time()
        elif share < ROOM and self.late < IN_TIME:
            self.limit = min(float(largest_limit), self.limit + 1 / self.limit)

    async def ready(self) -> bool:
        """Whether all front models in use are loaded."""
        return all([await client.ready() for client in self.clients.values()])


class Pool:
    """The endpoints of a fleet; `in_flight` is the most frames that one of them may have at once."""

    def __init__(self, endpoints: Sequence[Endpoint], in_flight: int, probe_every: float = PROBE_EVERY_S) -> None:
        self.endpoints = list(endpoints)
        for endpoint in self.endpoints:
            endpoint.limit = float(min(in_flight, FIRST_LIMIT))
        self.in_flight, self._probe_every = in_flight, probe_every
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()

    async def acquire(self) -> Endpoint:
        """A slot at the endpoint with the fewest frames in flight, once one is free and all earlier requests have
        theirs. Give it back with `release`.
        """
        future: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._assign()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            raise

    def release(self, endpoint: Endpoint) -> None:
        """Gives a slot back."""
        endpoint.busy -= 1
        self._assign()

    def lost(self, endpoint: Endpoint) -> None:
        """Nothing answers at the endpoint: it gets no more frames until it answers again."""
        if endpoint.away:
            return
        endpoint.away = True
        endpoint.outages += 1
        logger.warning("%s does not answer; its cameras wait or use the other servers", endpoint.address)
        endpoint.search = asyncio.get_running_loop().create_task(self._probe(endpoint))

    async def close(self) -> None:
        """Closes all connections."""
        for endpoint in self.endpoints:
            if endpoint.search is not None:
                endpoint.search.cancel()
            for client in endpoint.clients.values():
                await client.close()

    async def _probe(self, endpoint: Endpoint) -> None:
        while not await endpoint.ready():
            await asyncio.sleep(self._probe_every)
        endpoint.away = False
        logger.warning("%s answers again", endpoint.address)
        self._assign()

    def _assign(self) -> None:
        while self._waiting:
            free = [e for e in self.endpoints if not e.away and e.busy < int(e.limit)]
            if not free:
                return
            future = self._waiting.popleft()
            if not future.done():  # it is done where its camera was stopped
                endpoint = min(free, key=lambda e: e.busy)
                endpoint.busy += 1
                future.set_result(endpoint)
