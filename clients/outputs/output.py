"""One output that may fail: the disk is full, the folder was deleted, nobody reads the pipe, the share hangs.

Whatever happens is counted and named, and no camera waits for an output longer than `PATIENCE_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol, cast

from clients.outputs.worker import Worker

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""An output that takes longer for one thing is left out until it has done it."""


class File(Protocol):
    """What writes one file. Both calls raise where they fail; `write` may be called again then."""

    def write(self, *what: Any) -> None: ...
    def close(self) -> None: ...


class Output:
    """Writes with `make()`'s file in a thread of its own. `written` and `lost` count what it was given, `error` is the
    latest failure."""

    def __init__(self, name: str, make: Callable[[], File]) -> None:
        self.name, self.written, self.lost, self.error = name, 0, 0, ""
        self._make, self._file = make, cast("File | None", None)
        self._worker = Worker(f"output {name}")
        self._late: asyncio.Future[Any] | None = None

    async def open(self) -> bool:
        """Whether it can be written to, so far as that is known before the first frame."""
        return await self._do(self._open) is None

    async def write(self, *what: Any) -> None:
        """Passes `what` on to the file. Never raises."""
        if await self._do(self._write, *what) is None:
            self.written += 1
        else:
            self.lost += 1

    async def close(self) -> None:
        """Completes the file. Never raises."""
        await self._do(self._close)
        self._worker.stop()

    def record(self) -> dict[str, Any]:
        """The counts as plain data."""
        about = {"output": self.name, "written": self.written, "lost": self.lost}
        return about | ({"error": self.error} if self.error else {})

    async def _do(self, function: Callable[..., Any], *arguments: Any) -> BaseException | None:
        """None where it was done, else why not."""
        if self._late is not None and not self._late.done():
            return TimeoutError()
        job = self._worker.do(function, *arguments)
        await asyncio.wait({job}, timeout=PATIENCE_S)
        if not job.done():
            self._late = job
            job.add_done_callback(self._done_late)
            return self._failed(TimeoutError(f"does not take what is written to it ({PATIENCE_S:g} s)"))
        return self._failed(error) if (error := job.exception()) else None

    def _failed(self, error: BaseException) -> BaseException:
        text = str(error) or type(error).__name__
        if text != self.error:
            logger.warning("output %s: %s", self.name, text)
        self.error = text
        return error

    def _done_late(self, job: asyncio.Future[Any]) -> None:
        if not job.cancelled() and not job.exception():
            logger.warning("output %s takes again what is written to it", self.name)

    # ---- runs in the thread
    def _open(self) -> File:
        if self._file is None:
            self._file = self._make()
        return self._file

    def _write(self, *what: Any) -> None:
        self._open().write(*what)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
