"""One batch at a time: front models of a server that share a GPU, or a processor's cores, ask for a turn and get it one after the other.

Where every sub-model is a process of its own, two batches are not computed beside each other: the GPU changes between the processes' contexts every few
milliseconds, and both take longer than one after the other (on an H200 at 1008 with 16 frames under way, a frame's vision encoder 16.4 ms instead of
10.9). In turns one batch computes while the other's frames are decoded and its masks packed, and the batch after it fills up. On two cores of a
processor, 16 frames under way, that made p95 650 ms instead of 720 to 860 at the same throughput (`sam3-perf sweep --resolutions 252 --cameras 16 --classes 2
--requests 160`). The lock is a file's, which the system releases when a process dies.
"""

from __future__ import annotations

import fcntl
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

MODES = ("one", "any")
"""`one` batch of a server at a time, or `any` number: TensorRT's plans share one context, where batches do run beside each other."""


class Turns(AbstractContextManager[None]):
    """`with turns: ...` waits until no other process of this server is inside."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


def open_turns(mode: str, server_pid: int) -> AbstractContextManager[None]:
    """What a front model of the server with that process number wraps its batches in. Raises ValueError for another mode than `MODES`."""
    if mode not in MODES:
        raise ValueError(f"turns must be one of {', '.join(MODES)}, got {mode!r}; write the configuration again with sam3-export")
    return Turns(turns_path(server_pid)) if mode == "one" else nullcontext()


def turns_path(server_pid: int) -> Path:
    """The file that the front models of one server lock; whoever started the server may remove it afterwards."""
    return Path(tempfile.gettempdir()) / f"sam3-turns-{server_pid}"
