"""The servers of a fleet: cameras that want to send flow in, turns at a server that answers flow out, in the order of
asking.

Each server has so many places. Who asks first is served first, and a camera asks for one frame at a time, so under
overload every camera gets its share. A server that goes away is left out and looked for until it answers again;
meanwhile the others take its frames, and where there is no other the cameras wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from clients.connection import AsyncClient

LOOK_EVERY_S = 0.5
"""Between two looks for a server that is away: with gRPC's own second it is found within two."""
TOO_LATE, IN_TIME = 0.3, 0.1
"""Shares of late answers above which a server gets fewer frames at once, and below which more."""
ROOM = 0.6
"""Only answers that came within this share of their deadline say that there is room for more."""
FIRST_LIMIT = 8
"""Frames that a server gets at once before it has shown what it can do."""
MEMORY = 0.1
"""Weight of the latest answer in that share."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server as the pool sees it: a client per front model in use, frames under way, and how often it went away.

    `limit` is how many frames it may have at once. A queue that is longer than the deadlines makes every answer late,
    however fast the server is, so the limit follows the answers: a third less when too many are late, one more per
    round when they are not. One camera with a deadline that cannot be met does not make many.
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
        """The client of that front model, None being the server's only one. gRPC shares one connection among them."""
        if model not in self.clients:
            self.clients[model] = self.connect(model)
        return self.clients[model]

    def note(self, share: float, sent: float, most: int) -> None:
        """An answer came after that share of its deadline (above 1: late) to what was sent then (`time.monotonic`). The
        limit stays within 1 and `most`.
        """
        self.late += MEMORY * ((share > 1) - self.late)
        if (
            share > 1 and self.late > TOO_LATE and sent > self.lowered
        ):  # what was under way when it was lowered tells nothing new
            self.limit, self.lowered = max(1.0, self.limit * 2 / 3), time.monotonic()
        elif share < ROOM and self.late < IN_TIME:
            self.limit = min(float(most), self.limit + 1 / self.limit)

    async def ready(self) -> bool:
        """Whether all front models in use are there."""
        return all([await client.ready() for client in self.clients.values()])


class Pool:
    """`async with pool.turn() as place:` holds one place at the server with the fewest frames under way."""

    def __init__(
        self,
        places: Sequence[Endpoint],
        in_flight: int,
        say: Callable[[str], None] = lambda line: None,
        look_every: float = LOOK_EVERY_S,
    ) -> None:
        self.places = list(places)
        for place in self.places:
            place.limit = float(min(in_flight, FIRST_LIMIT))
        self.in_flight, self._say, self._look_every = in_flight, say, look_every
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()

    async def acquire(self) -> Endpoint:
        """A place, as soon as one is free and all who asked before have theirs; give it back with `release`."""
        future: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            raise

    def release(self, place: Endpoint) -> None:
        place.busy -= 1
        self._serve()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Endpoint]:
        place = await self.acquire()
        try:
            yield place
        finally:
            self.release(place)

    def lost(self, place: Endpoint) -> None:
        """Nothing answers there: no more turns until it does."""
        if place.away:
            return
        place.away = True
        place.outages += 1
        self._say(f"{place.address} is away; its cameras wait or use the other servers")
        place.search = asyncio.get_running_loop().create_task(self._look_for(place))

    async def close(self) -> None:
        for place in self.places:
            if place.search is not None:
                place.search.cancel()
            for client in place.clients.values():
                await client.close()

    async def _look_for(self, place: Endpoint) -> None:
        while not await place.ready():
            await asyncio.sleep(self._look_every)
        place.away = False
        self._say(f"{place.address} answers again")
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            free = [p for p in self.places if not p.away and p.busy < int(p.limit)]
            if not free:
                return
            future = self._waiting.popleft()
            if not future.done():  # or its camera was stopped
                place = min(free, key=lambda p: p.busy)
                place.busy += 1
                future.set_result(place)
