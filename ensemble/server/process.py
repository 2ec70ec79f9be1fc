"""The Triton process: started so that it never outlives its parent, its log read line by line, its children watched."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from ensemble.server.requirements import ServerError

log = logging.getLogger("ensemble.triton")
"""Triton's own lines; those below a warning are debug records here."""
LOG_LINE = re.compile(r"^(?P<level>[IWEF])\d{4} (?P<time>[\d:]+)\.\d+ \d+ [\w.]+:\d+\] (?P<text>.*)$")
LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
NO_GPU_NOISE = re.compile("cuda|dcgm|nvml|pinned", re.IGNORECASE)
"""What Triton complains of at every start on a machine without a GPU: nothing is wrong there, and nothing is to be
done."""
OVERDUE = "Exit timeout expired"
"""What Triton says where connections or sessions were still open when it was told to stop: it ends without them."""
POLL_S = 0.5
DIE_WITH_PARENT = """import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it died before that
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""A small program that becomes the one in its arguments, which ends in order when its parent dies, however that dies.
In a process of its own and not in `preexec_fn`, which may hang where the caller has threads."""


class ServerProcess:
    """A running server. Its warnings and errors are log records, and the latest are kept in `warnings`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.warnings: deque[str] = deque(maxlen=60)
        self._tail: deque[str] = deque(maxlen=15)
        self._children: dict[int, str] = {}
        self._stopping = False
        started: Future[subprocess.Popen[str]] = Future()
        threading.Thread(target=self._live, args=(command, environment, started), daemon=True).start()
        self._process = started.result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, patience: float) -> None:
        """Ends it in order, or after `patience` seconds at once; may be called twice.

        Processes of its models outlive a server that crashed, with the memory that they hold of a GPU: they are ended
        too. They are of its process group.
        """
        self._stopping = True
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def watch_children(self, others: Mapping[int, str] | None = None) -> None:
        """From now on `wait` notices when a process of a python model ends, which Triton itself never starts again, or
        one of `others`: process id -> name."""
        self._children = {pid: _model_of(pid) for pid in _children(self.pid)} | dict(others or {})

    def wait(self, seconds: float) -> None:
        """Blocks for so long while all is well. Raises ServerError when the server or one of its models has ended."""
        deadline = time.monotonic() + seconds
        while True:
            code = self._process.poll()
            if code is not None:
                raise ServerError(f"Triton stopped by itself (exit code {code}).\n{self.errors()}")
            for pid, model in self._children.items():
                if not _alive(pid):
                    raise ServerError(f"{model}: its process has ended.\n{self.errors()}")
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(POLL_S, left))

    def errors(self) -> str:
        """The latest complaints of the log, or its last lines where it has none."""
        return "\n".join(dict.fromkeys(self.warnings or self._tail))

    def _live(
        self, command: Sequence[str], environment: Mapping[str, str], started: Future[subprocess.Popen[str]]
    ) -> None:
        """The thread that starts the server and reads its log to the end: Linux calls a process orphaned when the
        *thread* that made it has ended."""
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server in order
            )
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        assert process.stdout is not None, "it was opened as a pipe"
        on_gpu = Path("/dev/nvidiactl").exists()
        for line in process.stdout:
            level, text = _readable(line.rstrip())
            self._tail.append(text)
            expected = self._stopping and OVERDUE in text
            if level >= logging.WARNING and not expected and (on_gpu or not NO_GPU_NOISE.search(text)):
                self.warnings.append(text)
                log.log(level, text)
            else:
                log.debug(text)
        process.wait()


def triton_command(
    package: Path, backends: Path, repository: Path, identity: str, ports: Mapping[str, tuple[str, int]]
) -> list[str]:
    """The command line of the embedded Triton; `ports` are address and port of "http", "grpc" and "metrics"."""
    return [
        str(package / "tritonserver" / "bin" / "tritonserver"),
        f"--id={identity}",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={identity}",
        "--disable-auto-complete-config",
        "--grpc-http2-max-ping-strikes=0",  # clients ping while they wait; the default closes their connections
        "--exit-timeout-secs=3",  # an idle keep-alive connection counts as work in progress until then
        *(f"--{kind}-address={address}" for kind, (address, _) in ports.items()),
        *(f"--{kind}-port={port}" for kind, (_, port) in ports.items()),
    ]


def _readable(line: str) -> tuple[int, str]:
    match = LOG_LINE.match(line)
    if match is None:
        return logging.INFO, line
    level, text = LEVELS[match["level"]], match["text"].strip('"')
    return level, f"{match['time']} {logging.getLevelName(level).lower()} {text}"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def cpu_seconds(pid: int, model: str) -> float:
    """Processor seconds so far of the processes that run this model for the server with that process id."""
    ticks = 0
    for child in _children(pid):
        if _model_of(child) == model:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(words[11]) + int(words[12])  # utime and stime, fields 14 and 15 of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def _model_of(pid: int) -> str:
    """Name of the model that a python process runs, from its command line, which names its `model.py`."""
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"):
            if word.endswith("/model.py"):
                return Path(word).parents[1].name
    return f"process {pid}"


def _alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
