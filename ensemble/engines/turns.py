"""One sub-model at a time: the processes of a server that compute on one GPU, or on the same cores, ask for a turn and
get it one after the other.

Where every sub-model is a process of its own (`ensemble/engine.py`), two of them are not computed beside each other:
the GPU changes between the processes' contexts every few milliseconds, and both take longer than one after the other
(on an H200 at 1008 with 16 frames under way, a frame's vision encoder 16.4 ms instead of 10.9). A turn is one call of
one sub-model, so that one batch's calls fill the gaps in which the other's are prepared, its frames decoded and its
masks packed. TensorRT's plans share one context, in which batches do run beside each other, and take no turns. The lock
is a file's, which the system releases when a process dies.
"""

from __future__ import annotations

import fcntl
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType


class Turns(AbstractContextManager[None]):
    """`with turns: ...` waits until no other process of the server with that process number is inside."""

    def __init__(self, server_pid: int) -> None:
        self._file = turns_path(server_pid).open("w")

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


def turns_path(server_pid: int) -> Path:
    """The file that the sub-models of one server lock; whoever started the server may remove it afterwards."""
    return Path(tempfile.gettempdir()) / f"sam3-turns-{server_pid}"
