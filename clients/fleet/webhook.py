"""Webhooks: events are posted to an HTTP address as JSON, without any camera waiting for it.

Each address has one queue and one request at a time, so events arrive in order. A receiver that fails gets a few
attempts; an event that cannot be delivered, or that finds the queue full, is counted as lost. Whoever knows a
receiver's path may post to it, so messages and accounts name its host alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from clients.redact import host_only, without_password
from ensemble.loopback import is_loopback

logger = logging.getLogger(__name__)

QUEUE = 256
ATTEMPTS, PAUSE_S, TIMEOUT_S = 3, 0.5, 5.0
"""Of one event; the time-out is from the connection to the end of the answer's head."""


class Webhook:
    """Posts records to `url` from the running event loop; `sent` and `lost` count them, `error` is the latest failure.
    A user and a password in the address are sent as basic authentication."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, host_only(url)
        self.sent = self.lost = 0
        self.error = ""
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE)
        self._worker: asyncio.Task[None] | None = None

    def send(self, record: dict[str, Any]) -> None:
        """Queues a record. Never waits."""
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            self._lose("events come faster than the receiver takes them")

    async def close(self, grace_s: float = 3.0) -> None:
        """Delivers queued records for at most `grace_s` seconds; the rest is lost."""
        if self._worker is None:
            return
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._queue.join(), grace_s)
        self._worker.cancel()
        await asyncio.wait({self._worker})  # it counts the record that it was sending
        while not self._queue.empty():
            self._queue.get_nowait()
            self._lose(self.error or f"not delivered within {grace_s:g} s of the end")

    def record(self) -> dict[str, Any]:
        """The counts as plain data."""
        about = {"output": self.name, "written": self.sent, "lost": self.lost}
        return about | ({"error": self.error} if self.error else {})

    async def _work(self) -> None:
        # proxies of the environment, but none between this machine and itself
        async with aiohttp.ClientSession(trust_env=not is_loopback(urlsplit(self.url).netloc)) as session:
            while True:
                record = await self._queue.get()
                problem = f"no answer within {TIMEOUT_S:g} s"
                try:
                    for attempt in range(ATTEMPTS):
                        problem = await self._post(session, record)
                        if not problem:
                            break
                        if attempt < ATTEMPTS - 1:
                            await asyncio.sleep(PAUSE_S)
                finally:  # a cancelled delivery counts too
                    if problem:
                        self._lose(problem)
                    else:
                        self.sent += 1
                    self._queue.task_done()

    def _lose(self, problem: str) -> None:
        self.lost += 1
        if problem != self.error:
            logger.warning("webhook %s: %s", self.name, problem)
        self.error = problem

    async def _post(self, session: aiohttp.ClientSession, record: dict[str, Any]) -> str:
        """Nothing where it was delivered, else why not. A redirect is not followed: a POST would become a GET,
        and what was seen would go to whoever is named there."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with session.post(self.url, json=record, allow_redirects=False, timeout=timeout) as answer:
                if answer.status < 300:
                    return ""
                to = f" to {self._target(answer)}; write its own address" if "Location" in answer.headers else ""
                return self._told(f"expected status 2xx, got {answer.status} {answer.reason or ''}{to}")
        except asyncio.TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except Exception as error:  # whatever aiohttp raises: a receiver must not end the delivery of later events
            return self._told(f"{type(error).__name__}: {error}")

    def _target(self, answer: aiohttp.ClientResponse) -> str:
        return host_only(urljoin(self.url, answer.headers["Location"]))

    def _told(self, problem: str) -> str:
        return without_password(problem.replace(self.url, self.name))
