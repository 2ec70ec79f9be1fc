"""The servers of a fleet, and the queue of cameras that wait for a free slot at one of them.

Each server has a number of slots: the frames that it processes at once. A camera requests one for one frame at a time,
and where all are taken, `turns.py` says who is next. A server that does not answer gets no frames until it answers
again; meanwhile the other servers take its share, and where there is no other the cameras wait. A camera whose objects
one server remembers waits for that one, and changes only where it is away.

A server may also stop answering without closing anything: it froze, its host lost its power, a cable was pulled. One
that is silent while it has frames is asked whether it is there. Without a reply its frames in flight are given up, and
it gets new ones only after it has answered a small one, for which it is asked at growing intervals. A server that says
that it is there is merely busy; it is given up only where another one could take over and it has been silent for much
longer than its answers took lately.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Sequence
from typing import Any

from clients.errors import RequestTimeout, ServerUnavailable, WrongVersion
from clients.fleet.endpoint import Endpoint, Found
from clients.fleet.turns import Claim, Turns

logger = logging.getLogger(__name__)

PROBE_EVERY_S = 0.5
"""Between two probes of a server that is away: with gRPC's own second it is found within two."""
LONGEST_PAUSE_S = 30.0
"""Between two probes of a server that hung: the pause doubles with each."""
FIRST_LIMIT = 8
"""Frames that a server gets at once before its answers have shown how many it can handle."""
QUIET_S = 1.0
"""A server that has frames and says nothing for so long is asked whether it is there, and again at this interval."""
UNHEARD = 2
"""Times in a row that it does not reply before it is given up: the first one may have hit a busy moment."""
PATIENCE_S, PATIENCE_TIMES = 8.0, 4.0
"""A server that says that it is there is given up after so long without an answer, or so many times what the slowest of
its latest answers took, whichever is longer; and only where another one is there."""


KEPT = 0.9
"""Floors of which less is kept are told of in the log."""


class Pool:
    """The endpoints of a fleet; `in_flight` is the most frames that one of them may have at once. `outages` counts how
    often the last of the servers went away."""

    def __init__(self, endpoints: Sequence[Endpoint], in_flight: int, probe_every: float = PROBE_EVERY_S) -> None:
        self.endpoints = list(endpoints)
        for endpoint in self.endpoints:
            endpoint.limit = float(min(in_flight, FIRST_LIMIT))
        self.in_flight, self._probe_every = in_flight, probe_every
        self.turns, self._anyone, self._told, self.outages = Turns(), Claim(), False, 0
        self._waiting: list[tuple[asyncio.Future[Endpoint], Endpoint | None, Claim]] = []

    async def acquire(self, home: Endpoint | None = None, claim: Claim | None = None) -> Endpoint:
        """A slot at the endpoint with the fewest frames in flight, or at `home` unless that is away, once one is free
        and it is the turn of `claim` (None: of one like any other). Give it back with `release`.
        """
        loop, claim = asyncio.get_running_loop(), claim or self._anyone
        future: asyncio.Future[Endpoint] = loop.create_future()
        self.turns.ask(claim, loop.time())
        self._waiting.append((future, home, claim))
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

    async def ask(self, endpoint: Endpoint, question: Coroutine[Any, Any, Found]) -> Found:
        """The answer to a request for which a slot was given. Raises what the request raises, and ServerUnavailable
        where the server hangs."""
        loop = asyncio.get_running_loop()
        sent = loop.time()
        if endpoint.watch is None or endpoint.watch.done():
            endpoint.watch = loop.create_task(self._watch(endpoint))
        try:
            return await endpoint.ask(question)
        except RequestTimeout:
            if endpoint.heard < sent and self._others(endpoint):
                self.lost(endpoint, "has answered nothing within the time-out")
            raise

    def of_another_version(self, endpoint: Endpoint, error: WrongVersion) -> None:
        """The endpoint answers, but not what its clients ask. Others take its cameras until it does; where there are
        none it is asked on, since behind one address there may be servers of both versions."""
        if self._others(endpoint):
            self.lost(endpoint, error=error)

    def lost(self, endpoint: Endpoint, hangs: str = "", error: ServerUnavailable | WrongVersion | None = None) -> None:
        """The endpoint gets no more frames until it answers again. `error` says what a request met there: nobody, or a
        server of another version. `hangs` says how it shows that it hangs; then its frames in flight are given up."""
        if endpoint.away:
            return
        endpoint.away = True
        endpoint.outages += 1
        self.outages += self.away
        other = isinstance(error, WrongVersion)
        what = hangs or (f"is of another version ({error})" if other else f"does not answer ({error})")
        logger.warning("%s %s; its cameras wait or use the other servers", endpoint.address, what)
        endpoint.search = asyncio.get_running_loop().create_task(self._probe(endpoint, bool(hangs) or other))
        if hangs:
            endpoint.give_up(hangs)

    async def close(self) -> None:
        """Closes all connections; side by side, since those of a server that hangs take a while."""
        for endpoint in self.endpoints:
            for task in (endpoint.search, endpoint.watch):
                if task is not None:
                    task.cancel()
        await asyncio.gather(*(client.close() for e in self.endpoints for client in e.clients.values()))

    @property
    def away(self) -> bool:
        """Whether no server is there."""
        return all(endpoint.away for endpoint in self.endpoints)

    def _others(self, endpoint: Endpoint) -> bool:
        """Whether another server could take over."""
        return any(not other.away for other in self.endpoints if other is not endpoint)

    async def _watch(self, endpoint: Endpoint) -> None:
        """Looks after an endpoint while it has frames in flight: gives it up where it hangs."""
        clock = asyncio.get_running_loop().time
        unheard = 0
        while endpoint.in_flight and not endpoint.away:
            quiet = clock() - endpoint.quiet_since
            if quiet < QUIET_S:
                unheard = 0
                await asyncio.sleep(QUIET_S - quiet)
                continue
            asked = clock()
            unheard = 0 if await endpoint.ready() or endpoint.heard > asked else unheard + 1
            patience = max(PATIENCE_S, PATIENCE_TIMES * endpoint.slowest) if self._others(endpoint) else math.inf
            if unheard >= UNHEARD:
                self.lost(endpoint, "hangs: it has frames and does not say that it is there")
            elif endpoint.in_flight and endpoint.slowest and clock() - endpoint.quiet_since > patience:
                self.lost(endpoint, f"hangs: it says that it is there and has answered nothing for {patience:.0f} s")
            else:
                await asyncio.sleep(QUIET_S / (1 + unheard))

    async def _probe(self, endpoint: Endpoint, hung: bool) -> None:
        pause = self._probe_every
        while not (await endpoint.ready() and (not hung or await endpoint.answers())):
            await asyncio.sleep(pause)
            if hung:
                pause = min(2 * pause, LONGEST_PAUSE_S)
        endpoint.away = False
        logger.warning("%s answers again", endpoint.address)
        self._assign()

    def _assign(self) -> None:
        if not any(self._free(endpoint) for endpoint in self.endpoints):
            return
        now, turns = asyncio.get_running_loop().time(), self.turns
        waiting = [one for one in self._waiting if not one[0].done()]  # those of stopped cameras are done
        self._waiting = []
        for future, home, claim in sorted(waiting, key=lambda one: turns.order(one[2], now)):
            free = [endpoint for endpoint in self.endpoints if self._free(endpoint)]
            if home is not None and not home.away:
                free = [home] if home in free else []
            if not free:
                self._waiting.append((future, home, claim))
            else:
                endpoint = min(free, key=lambda e: e.busy)
                endpoint.busy += 1
                turns.give(claim, now)
                future.set_result(endpoint)
        self._tell()

    def _free(self, endpoint: Endpoint) -> bool:
        return not endpoint.away and endpoint.busy < int(endpoint.limit)

    def _tell(self) -> None:
        """Logs that the floors are no longer kept, or that they are again."""
        if (self.turns.kept < KEPT) == self._told:
            return
        self._told = not self._told
        if self._told:
            logger.warning(
                "the cameras' floors (least_fps) ask for more than the servers answer: each camera gets about %.0f %%"
                " of its floor; lower them, or add a server",
                100 * self.turns.kept,
            )
        else:
            logger.warning("the cameras' floors (least_fps) are kept again")
