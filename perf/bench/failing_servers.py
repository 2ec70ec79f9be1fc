"""Servers that fail: supervised as by `sam3-serve`, and hurt now and then in one of the ways that real ones fail."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from clients.message import build_request
from clients.transport import Server
from ensemble.interfaces import ENGINE_MODEL
from ensemble.server.drain import drain
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from ensemble.server.supervision import supervise

PROBE_EVERY_S = 5.0
FROZEN_S = 20.0
"""So long a frozen server keeps its connections and answers nobody."""
CANCELLED, CANCELLED_AFTER_S = 200, 0.02
"""Requests that are given up by their sender, and when."""
log = logging.getLogger(__name__)


class FailingServer:
    """A supervised server; `restarts` counts how often its supervision started it again, `gave_up` says why it does not
    any more."""

    def __init__(self, repository: Path, resolution: int) -> None:
        self.server = EmbeddedServer(repository, resolutions=[resolution])
        self.front = f"sam3_r{resolution}"
        self.restarts, self.gave_up = 0, ""
        self._ended = threading.Event()

    def __enter__(self) -> FailingServer:
        self.server.start()
        start = self.server.start

        def again() -> EmbeddedServer:
            started = start()
            self.restarts += 1
            return started

        self.server.start = again  # type: ignore[method-assign]
        self._begin()
        return self

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.server.stop()
        self._thread.join()
        self.server.stop()  # where it was being started again meanwhile

    def _supervise(self) -> None:
        try:
            supervise(self.server, PROBE_EVERY_S, self._ended)
        except ServerError as error:
            self.gave_up = str(error)
            log.exception("%s", self.server.grpc_url)

    def _processes(self, model: str) -> Iterator[int]:
        """Process ids of a model's python instances."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().decode(errors="replace").split("\0")
                if any(w.startswith(self.server.identity) for w in words) and any(f"/{model}/" in w for w in words):
                    yield int(path.parent.name)

    # ---- troubles
    def engine_is_killed(self) -> None:
        self._signal(self._processes(ENGINE_MODEL), signal.SIGKILL)

    def front_is_killed(self) -> None:
        self._signal(self._processes(self.front), signal.SIGKILL)

    def engine_hangs(self) -> None:
        self._signal(self._processes(ENGINE_MODEL), signal.SIGSTOP)

    def server_is_killed(self) -> None:
        self._signal([self.server.pid or 0], signal.SIGKILL)

    def server_freezes(self) -> None:
        pid = self.server.pid or 0
        self._signal([pid], signal.SIGSTOP)
        time.sleep(FROZEN_S)
        self._signal([pid], signal.SIGCONT)

    def server_is_upgraded(self) -> None:
        """Ended in order, as `sam3-serve` ends one, and started again."""
        self._ended.set()
        self._thread.join()
        drain(self.server.ending, self.server.health)
        self.server.stop()
        self._ended.clear()
        self.server.start()
        self._begin()

    def requests_are_cancelled(self) -> None:
        """A client that takes its requests back while the server works on them."""
        settings = Server(self.server.grpc_url)
        request = settings.infer_inputs(build_request(np.zeros((28, 28, 3), np.uint8), ["object"]))
        client = settings.connect(asyncio=False)
        for _ in range(CANCELLED):
            call = client.async_infer(self.front, request, callback=lambda result, error: None)
            time.sleep(CANCELLED_AFTER_S)
            call.cancel()
        client.close()

    @staticmethod
    def _signal(pids: Iterable[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, number)


TROUBLES = (
    FailingServer.engine_is_killed,
    FailingServer.server_freezes,
    FailingServer.requests_are_cancelled,
    FailingServer.server_is_killed,
    FailingServer.engine_hangs,
    FailingServer.front_is_killed,
)
"""In the order in which they come."""
