"""Webhooks: events are posted to an HTTP address as JSON, without any camera waiting for it.

Each address has one queue and one request at a time, so events arrive in order. A receiver that fails gets a few
attempts; an event that cannot be delivered, or that finds the queue full, is counted as lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from typing import Any

from ensemble.loopback import open_url

QUEUE = 256
ATTEMPTS, PAUSE_S, TIMEOUT_S = 3, 0.5, 5.0


class Webhook:
    """Posts records to `url` from the running event loop; `sent` and `lost` count them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent = self.lost = 0
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE)
        self._worker: asyncio.Task[None] | None = None

    def send(self, record: dict[str, Any]) -> None:
        """Queues a record. Never waits."""
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            self.lost += 1

    async def close(self, grace_s: float = 3.0) -> None:
        """Delivers queued records for at most `grace_s` seconds; the rest is lost."""
        if self._worker is None:
            return
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._queue.join(), grace_s)
        self._worker.cancel()
        await asyncio.wait({self._worker})  # it counts the record that it was sending
        self.lost += self._queue.qsize()

    async def _work(self) -> None:
        while True:
            record = await self._queue.get()
            delivered = False
            try:
                for attempt in range(ATTEMPTS):
                    if delivered := await asyncio.to_thread(self._post, record):
                        break
                    if attempt < ATTEMPTS - 1:
                        await asyncio.sleep(PAUSE_S)
            finally:  # a cancelled delivery counts too
                self.sent += delivered
                self.lost += not delivered
                self._queue.task_done()

    def _post(self, record: dict[str, Any]) -> bool:
        request = urllib.request.Request(self.url, json.dumps(record).encode(), {"Content-Type": "application/json"})
        try:
            with open_url(request, TIMEOUT_S):
                return True
        except (OSError, ValueError):
            return False
