"""perf_analyzer as a function: arguments and a number of requests in, the figures of one measurement out.

The wheel of tritonclient carries the program, but not two libraries that it links to, libb64 and the CUDA 12 runtime.
The wheel of nvidia-pytriton carries both under other names, so that links to them in a folder of our own are enough,
and nothing has to be installed.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.loopback import no_proxy_variables

LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""Name that perf_analyzer asks for -> the file in the folder `nvidia_pytriton.libs`."""
COMPUTE = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")
POLL_S = 5.0
GRACE_S = 60.0
"""So long after the server's last answer perf_analyzer must have ended; it writes its files in that time."""
STEADY = ("--measurement-mode", "count_windows", "--stability-percentage", "999")
"""Three windows, one after another: their number is fixed, not chosen by what they show."""


class AnalyzerError(RuntimeError):
    """perf_analyzer is missing, does not start or could not measure; the message says why and what to do."""


class AnalyzerStuckError(AnalyzerError):
    """perf_analyzer does not end though the server has answered everything: version 2.51 in 3 of 280 windows of five
    requests at five a second, with `--async` or without, on a machine with other work."""


@dataclass(frozen=True, slots=True)
class Window:
    """One measurement window. Times in milliseconds, `fps` in inferences a second (frames: requests times their
    batch)."""

    requests: int
    fps: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    network_ms: float
    queue_ms: float
    compute_ms: float
    reported_fps: float  # perf_analyzer's own line: it looks at the clock once a second, so a short window reads low


class Analyzer:
    """The program, ready to run; a context manager that owns the folder of links. Raises AnalyzerError where it cannot
    run."""

    def __init__(self) -> None:
        self.program = find_program()
        self._folder = tempfile.TemporaryDirectory(prefix="sam3-perf-")
        self.environment = (
            os.environ
            | no_proxy_variables()
            | {"LD_LIBRARY_PATH": f"{link_libraries(Path(self._folder.name))}:{_library_path()}"}
        )
        try:
            done = subprocess.run(
                [self.program, "--version"], env=self.environment, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise AnalyzerError(
                f"{self.program} cannot be executed ({error.strerror}); its wheel is for Linux on x86_64"
            ) from None
        if done.returncode:
            raise AnalyzerError(
                f"{self.program} does not start: {(done.stderr or done.stdout).strip()[-300:]}; install what it misses"
                ' (Debian: libb64-0d; pip: nvidia-cuda-runtime-cu12), or pip install -e ".[serve]", which carries both'
            )
        self.version = (done.stdout + done.stderr).split("Version")[-1].split("(")[0].strip()

    def __enter__(self) -> Analyzer:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(
        self,
        arguments: Sequence[str],
        *,
        requests: int,
        batch: int = 1,
        log: bool = True,
        steady: bool = False,
        timeout: float = 300.0,
        answered: Callable[[], float] | None = None,
    ) -> Window:
        """One window of exactly `requests` requests; with `steady` the mean of three, each of at least so many, without
        a pause between them. Raises AnalyzerError with the program's own last words, AnalyzerStuckError where the
        program is at fault, which `answered` tells: how many requests of the model the server has answered so far.

        Its log of requests holds all their tensors as text: `log=False` does without it where those are many megabytes.
        Then throughput is exact for one request at a time, and otherwise where `steady`.
        """
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            report, export = Path(folder) / "window.csv", Path(folder) / "requests.json"
            count = [*STEADY, "--measurement-request-count"] if steady else ["--request-count"]
            command = [self.program, *arguments, *count, str(requests), "-b", str(batch)]
            command += ["-f", str(report), "--percentile", "95"]
            command += ["--profile-export-file", str(export)] if log else []
            done = self._ended(command, requests, timeout, answered)
            if done.returncode or not report.is_file() or (log and not export.is_file()):
                raise AnalyzerError(
                    f"perf_analyzer ended with {done.returncode}: {last_words(done.stdout + done.stderr)}"
                )
            with report.open() as lines:
                row = next(csv.DictReader(lines))
            if not log:
                return window_of_row(row, requests, batch, steady)
            # The log is JSON but for the bytes of the pictures, which it copies as they are.
            return window(row, json.loads(export.read_text(errors="replace"), strict=False), batch)

    def _ended(
        self, command: Sequence[str], requests: int, timeout: float, answered: Callable[[], float] | None
    ) -> subprocess.CompletedProcess[str]:
        """The program's status and words once it has ended; killed where it does not."""
        begun = quiet = time.monotonic()
        before, count = answered() if answered else 0.0, 0.0
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        out, err = process.communicate(timeout=min(POLL_S, timeout))
                        return subprocess.CompletedProcess(command, process.returncode, out, err)
                    now, last = time.monotonic(), count
                    count = answered() - before if answered else 0.0
                    quiet = now if count != last else quiet
                    if count >= requests and now - quiet > GRACE_S:
                        raise AnalyzerStuckError(
                            f"perf_analyzer has not ended {now - quiet:.0f} s after the server's last answer"
                        )
                    if now - begun > timeout:
                        told = f"; the server gave {count:.0f}" if answered else ""
                        raise AnalyzerError(
                            f"perf_analyzer had no {requests} answers after {timeout:.0f} s{told}; is the server alive?"
                            " ask for fewer --requests or more --point-timeout"
                        )
            finally:
                process.kill()


def find_program() -> str:
    """perf_analyzer on PATH, else beside this Python. Raises AnalyzerError."""
    beside = Path(sys.executable).with_name("perf_analyzer")
    found = shutil.which("perf_analyzer") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise AnalyzerError(
            'perf_analyzer is not on PATH nor in this environment; pip install "tritonclient[all]==2.51.0"'
        )
    return found


def link_libraries(folder: Path) -> Path:
    """Links in `folder` to the libraries that nvidia-pytriton carries, as far as it is installed; returns `folder`."""
    spec = find_spec("pytriton")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for name, pattern in LIBRARIES.items():
            for library in (Path(place).parent / "nvidia_pytriton.libs").glob(pattern):
                (folder / name).symlink_to(library)
                break
    return folder


def _library_path() -> str:
    return os.environ.get("LD_LIBRARY_PATH", "")


def window(row: dict[str, str], export: dict[str, Any], batch: int) -> Window:
    """The figures of one window from perf_analyzer's CSV row (microseconds) and its log of requests (nanoseconds).

    Percentiles and throughput are taken from the log, first request to last answer. Raises AnalyzerError where no
    request was answered.
    """
    answered = [r for e in export["experiments"] for r in e["requests"] if r.get("response_timestamps")]
    if not answered:
        raise AnalyzerError("perf_analyzer logged no answered request; look at the server's log")
    starts = np.array([r["timestamp"] for r in answered], np.int64)
    ends = np.array([r["response_timestamps"][-1] for r in answered], np.int64)
    milliseconds = (ends - starts) / 1e6
    p50, p90, p95, p99 = (float(v) for v in np.percentile(milliseconds, [50, 90, 95, 99]))
    return Window(
        requests=len(answered),
        fps=batch * len(answered) / float((ends.max() - starts.min()) / 1e9),
        mean_ms=float(milliseconds.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        **_server_times(row),
    )


def window_of_row(row: dict[str, str], requests: int, batch: int, steady: bool = False) -> Window:
    """The same from the CSV row alone. Throughput is perf_analyzer's own of `steady` windows; else it is the batch over
    the mean latency, which holds for one request at a time."""
    parts = ("Client Send", "Network+Server Send/Recv", "Server Queue", "Client Recv", *COMPUTE)
    mean = sum(float(row[part]) for part in parts) / 1e3
    p50, p90, p95, p99 = (float(row[f"p{p} latency"]) / 1e3 for p in (50, 90, 95, 99))
    fps = float(row["Inferences/Second"]) if steady else batch * 1e3 / mean
    return Window(requests, fps, mean, p50, p90, p95, p99, **_server_times(row))


def _server_times(row: dict[str, str]) -> dict[str, float]:
    return {
        "network_ms": float(row["Network+Server Send/Recv"]) / 1e3,
        "queue_ms": float(row["Server Queue"]) / 1e3,
        "compute_ms": sum(float(row[part]) for part in COMPUTE) / 1e3,
        "reported_fps": float(row["Inferences/Second"]),
    }


def last_words(output: str) -> str:
    """The lines that say what went wrong, or the last ones."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    bad = [line for line in lines if line.lower().startswith(("error", "fail", "thread"))]
    return " ".join((bad or lines)[-3:])[:500]
