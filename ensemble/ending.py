"""The end of a server in order: what it holds is answered, what comes later is refused.

Triton alone cannot do that: from the moment that it is told to stop, calls of its models to each other fail, and with
them each frame that waits for a front model. So whoever ends a server says so in a folder first. Models that clients
call look there before they take a frame, and hold a lock of it while they work on a batch. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "SAM3_ENDING"
"""The environment variable that tells Triton's processes the folder; without it a model is never refused a frame."""
MARK, LOCK = "ending", "under-way"


class ServerEnding(RuntimeError):  # noqa: N818 - the name says what happened
    """A frame came after its server was told to end."""


class Ending:
    """The same folder, seen by the models (`of_environment`) and by whoever ends the server."""

    def __init__(self, folder: Path | None) -> None:
        self._mark = folder / MARK if folder else None
        self._lock = (folder / LOCK).open("ab") if folder else None

    @classmethod
    def of_environment(cls) -> Ending:
        return cls(Path(os.environ[FOLDER]) if FOLDER in os.environ else None)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """A batch is worked on meanwhile. Frames are checked inside, so that none slips through between."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            if self._lock is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def check(self) -> None:
        """Raises ServerEnding where the server takes no more frames."""
        if self._mark is not None and self._mark.exists():
            raise ServerEnding("this server is ending and takes no more frames; send them to another, or once it is up")

    def begin(self) -> None:
        """From now on each frame is refused that a model takes from its queue."""
        assert self._mark is not None, "a server that is ended in order has a folder for it"
        self._mark.touch()

    @property
    def idle(self) -> bool:
        """Whether no batch is worked on."""
        assert self._lock is not None, "a server that is ended in order has a folder for it"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return True
