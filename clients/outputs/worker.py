"""A thread that does one thing after the other, and does not keep Python running: a disk or a pipe may hang."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

Job = tuple[concurrent.futures.Future[Any], Callable[[], Any]]


class Worker:
    """Starts its thread with the first job."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def do(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """The result of the call, or what it raised, in the running event loop."""
        if self._thread.ident is None:
            self._thread.start()
        result: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._jobs.put((result, partial(function, *arguments)))
        return asyncio.wrap_future(result)

    def stop(self) -> None:
        """Ends the thread after what it has to do, without waiting."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, call = job
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(call())
                except BaseException as error:
                    result.set_exception(error)
