"""Cases one after the other in a process of their own, so that one that crashes, hangs or takes too much memory is
noticed and named, and the next ones are still tried."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.reply import TIMEOUT_S, Reply

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; the package runs on 3.10

ADDRESS_SPACE = 16 << 30
"""Bytes that the process may ask for, so that no case takes the machine's memory."""
MB = 1 << 20

Judge = Callable[[Any], tuple[str, str]]
"""What came of a case: how it ended, one of `tests.fuzz.reply.FINE` where it may end so, and the sentence about it."""


class Child:
    """A process that judges cases, followed by another one where it ends. `ended` counts those that did."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self.ended = judge, 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(self._judge, other), daemon=True)
        self._process.start()
        other.close()
        self._connection.recv()  # until it has imported what it needs

    def try_out(self, case: Any, timeout_s: float = TIMEOUT_S) -> tuple[Reply, float]:
        """What came of the case, `crashed` and `silent` among it, and how many MB the process had at most above what it
        had at its start."""
        start, mb = time.monotonic(), 0.0
        try:
            self._connection.send(case)
            if self._connection.poll(timeout_s):
                kind, text, mb = self._connection.recv()
                return Reply(kind, text, time.monotonic() - start), mb
            kind, text = "silent", ""
        except (EOFError, OSError):
            self._process.join(timeout_s)
            kind, text = "crashed", _ending(self._process.exitcode)
        reply = Reply(kind, text, time.monotonic() - start)
        self.close()
        self.ended += 1
        self._start()
        return reply, mb

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


# ---- runs in the process
def _work(judge: Judge, connection: Connection) -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    logging.getLogger().addHandler(logging.NullHandler())  # what is skipped is part of the outcome
    warned: list[str] = []
    warnings.simplefilter("always", append=True)  # those that the product does not keep from the screen
    warnings.showwarning = lambda message, *_, **__: warned.append(str(message))
    before = _memory("VmRSS")
    connection.send("ready")
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        try:
            kind, text = judge(case)
        except BaseException as error:
            kind, text = "raised", f"{type(error).__name__}: {error}"
        if warned:
            kind, text = "warned", "; ".join(warned)
            warned.clear()
        connection.send((kind, text, (_memory("VmHWM") - before) / MB))


def _memory(name: str) -> int:
    """Bytes of resident memory: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
