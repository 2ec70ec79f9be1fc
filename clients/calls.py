"""Inference over gRPC that is never taken back: whoever stops waiting leaves the call open, and its late answer is
dropped.

Triton before 24.12 can crash when a request is cancelled in the moment of its answer (triton-inference-server/server
#7368), and a deadline that passes is a cancellation too. So these calls have a deadline far beyond the caller's, which
only bounds what a server that never answers costs. Requests over HTTP need none of this: a closed connection does not
hurt the server.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Sequence
from typing import Any

DEADLINE_S = 600.0
"""Beyond the caller's own patience: so long an unanswered call is kept."""
LAST_ANSWERS_S = 3.0
"""What is still open when a client closes has so long to be answered."""


class BlockingCalls:
    """Calls by tritonclient's blocking gRPC client, from any thread."""

    def __init__(self) -> None:
        self._open: set[concurrent.futures.Future[Any]] = set()

    def infer(self, triton: Any, model: str, inputs: Sequence[Any], timeout: float, **more: Any) -> Any:
        """The result; `more` are further arguments of tritonclient's call. Raises TimeoutError after `timeout` seconds,
        and what tritonclient raises."""
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def done(result: Any, error: BaseException | None) -> None:
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        try:
            triton.async_infer(model, inputs, done, client_timeout=timeout + DEADLINE_S, **more)
        except BaseException as error:  # nothing was sent
            self._open.discard(answer)
            raise error
        try:
            return answer.result(timeout)
        except concurrent.futures.TimeoutError:  # not the built-in one before Python 3.11
            if answer.done():
                raise
            raise TimeoutError from None

    def close(self) -> None:
        """Waits for what is open, not long."""
        concurrent.futures.wait(tuple(self._open), LAST_ANSWERS_S)


class AsyncCalls:
    """The same by its asyncio client, in one event loop."""

    def __init__(self) -> None:
        self._open: set[asyncio.Task[Any]] = set()

    async def infer(self, triton: Any, model: str, inputs: Sequence[Any], timeout: float, **more: Any) -> Any:
        """The result. Raises TimeoutError after `timeout` seconds, and what tritonclient raises; a caller that is
        cancelled leaves the call open too."""
        call = asyncio.ensure_future(triton.infer(model, inputs, client_timeout=timeout + DEADLINE_S, **more))
        self._open.add(call)
        call.add_done_callback(self._forget)
        await asyncio.wait({call}, timeout=timeout)
        if not call.done():
            raise TimeoutError
        return call.result()

    async def close(self) -> None:
        """Waits for what is open, not long."""
        if self._open:
            await asyncio.wait(tuple(self._open), timeout=LAST_ANSWERS_S)

    def _forget(self, call: asyncio.Task[Any]) -> None:
        self._open.discard(call)
        if not call.cancelled():
            call.exception()  # nobody else may look at it, of which asyncio would complain
