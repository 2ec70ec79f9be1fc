"""A model repository in, a running Triton server out: the `EmbeddedServer` that `sam3-serve`, the demo, the tests and
the benchmarks use.

The binary is NVIDIA's own, from the `nvidia-pytriton` wheel, with its python backend and nothing else; a container with
the full set of backends is what `docker-compose.yml` starts. What the server needs is checked before it starts, since
its own messages name symptoms and not causes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

from ensemble.engines.turns import turns_path
from ensemble.server import gpu, start_check
from ensemble.server import repository as placement
from ensemble.server.memory import MB, pool_mb
from ensemble.server.requirements import (
    ServerError,
    check_numpy,
    check_repository,
    environment,
    find_libpython,
    find_triton,
    lay_out_backends,
)
from ensemble.spec import Variant, is_front_name

NO_METRICS = "--allow-metrics=false"
PROBE_SIDE = 14
"""Pixels a side of the black frame that a probe sends."""
LOG_LINE = re.compile(r"^(?P<level>[IWEF])\d{4} (?P<time>[\d:]+)\.\d+ \d+ [\w.]+:\d+\] (?P<text>.*)$")
LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "fatal"}
NO_GPU_NOISE = re.compile("cuda|dcgm|nvml|pinned", re.IGNORECASE)
"""What Triton complains of at every start on a machine without a GPU: nothing is wrong there, and nothing is to be
done."""
DIE_WITH_PARENT = """import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it died before that
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""A small program that becomes the one in its arguments, which ends in order when its parent dies, however that dies.
In a process of its own and not in `preexec_fn`, which may hang where the caller has threads."""


class EmbeddedServer:
    """Starts Triton on a repository, waits until every model answers, stops it at the end of a `with` block.

    Port 0 means a free one. `resolutions` are those to serve, all where none is named; `front` changes their front
    models (`placement.FRONT_SETTINGS`), which otherwise are as exported; `gpu_memory_mb` is reckoned with in place of
    what is free on the GPU. `log` gets one readable line at a time. Raises ServerError with a remedy where something is
    missing.
    """

    def __init__(
        self,
        repository: Path | str,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        *,
        address: str = "127.0.0.1",
        log: Callable[[str], None] | None = None,
        verbose: bool = False,
        start_timeout: float = 180.0,
        arguments: Sequence[str] = (),
        resolutions: Sequence[int] = (),
        gpu_memory_mb: float | None = None,
        front: Mapping[str, int] | None = None,
    ) -> None:
        self.repository = Path(repository).resolve()
        self.address, self._log, self._verbose, self._timeout, self._arguments = (
            address,
            log,
            verbose,
            start_timeout,
            tuple(arguments),
        )
        self._resolutions, self._gpu_memory_mb = tuple(resolutions), gpu_memory_mb
        self._front = dict(front or {})
        self._root = self.repository
        self.pool_mb = 0.0
        """Megabytes of Triton's CUDA pool on its GPU; 0 before the start and where no model is placed on one."""
        self.http_port, self.grpc_port, self.metrics_port = choose_ports(address, (http_port, grpc_port, metrics_port))
        self.identity = f"sam3-{uuid.uuid4().hex[:12]}"
        self.tail: deque[str] = deque(maxlen=60)
        self._process: subprocess.Popen[str] | None = None
        self._scratch: Path | None = None

    @property
    def http_url(self) -> str:
        """host:port of HTTP."""
        return f"{self.address}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """host:port of gRPC."""
        return f"{self.address}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """host:port of the Prometheus endpoint, whose path is /metrics."""
        return f"{self.address}:{self.metrics_port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> EmbeddedServer:
        """Returns when every model is loaded. Raises ServerError, with the server's own last errors, where that
        fails."""
        check_repository(self.repository)
        package = find_triton()
        check_numpy()
        libpython = find_libpython()
        found = placement.read(self.repository)
        served = placement.choose(found, self._resolutions) if self._resolutions else found
        served = placement.adjusted(served, self._front)
        host = start_check.Host(gpu.serving(), stated_mb=self._gpu_memory_mb)
        if self._process is None:  # what fitted once fits again; a GPU may need a moment to be free of the last server
            start_check.check(self.repository, served, host, self._pool, self._log or (lambda line: None))
        self._scratch = Path(tempfile.mkdtemp(prefix="sam3-triton-"))
        try:
            if served != found:
                self._root = placement.view(served, self._scratch)
            command = self._command(package, lay_out_backends(package, self._scratch))
            if any(s.on_gpu for s in served):
                self.pool_mb = self._pool([s.variant for s in served])
                if host.card and start_check.stated_pool_mb(self._arguments) is None:
                    command.append(f"{start_check.POOL_FLAG}{round(self.pool_mb * MB)}")
            started: Future[subprocess.Popen[str]] = Future()
            threading.Thread(
                target=self._live, args=(command, environment(package, libpython), started), daemon=True
            ).start()
            self._process = started.result()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends the server and what it left in shared memory; may be called twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        for leftover in Path("/dev/shm").glob(f"{self.identity}*"):
            leftover.unlink(missing_ok=True)
        if self._process is not None:
            turns_path(self._process.pid).unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def wait(self, timeout: float) -> None:
        """Blocks for `timeout` seconds while the server runs. Raises ServerError when it ends by itself."""
        assert self._process is not None, "start() comes first"
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return
        raise ServerError(f"Triton stopped by itself (exit code {code}).\n{self._errors()}")

    def probe(self, timeout: float = 60.0) -> None:
        """Sends every front model one black frame. Raises ServerError where one does not answer.

        Triton calls itself ready while a python model's process is dead and never starts it again: only an inference
        tells.
        """
        body = {
            "inputs": [
                {
                    "name": "frame",
                    "datatype": "UINT8",
                    "shape": [1, PROBE_SIDE, PROBE_SIDE, 3],
                    "data": [0] * (3 * PROBE_SIDE**2),
                },
                {"name": "classes", "datatype": "BYTES", "shape": [1, 1], "data": ["object"]},
            ]
        }
        for config in sorted(self._root.glob("*/config.pbtxt")):
            if not is_front_name(config.parent.name):
                continue
            url = f"http://{self.http_url}/v2/models/{config.parent.name}/infer"
            try:
                with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=timeout):
                    pass
            except urllib.error.HTTPError as error:
                raise ServerError(
                    f"{config.parent.name} does not answer: {error.read().decode(errors='replace')[:500]}"
                ) from None
            except OSError as error:
                raise ServerError(f"{config.parent.name} does not answer: {error}") from None

    def _command(self, package: Path, backends: Path) -> list[str]:
        return [
            str(package / "tritonserver" / "bin" / "tritonserver"),
            f"--id={self.identity}",
            f"--model-repository={self._root}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self.identity}",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=3",  # an idle keep-alive connection counts as work in progress until then
            *(f"--{kind}-address={self.address}" for kind in ("http", "grpc", "metrics")),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            *self._arguments,
        ]

    def _pool(self, variants: Sequence[Variant]) -> float:
        """Megabytes of Triton's CUDA pool: as in the further arguments, else what the variants need."""
        stated = start_check.stated_pool_mb(self._arguments)
        return pool_mb(variants) if stated is None else stated

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
        for line in process.stdout:
            level, text = _readable(line.rstrip())
            self.tail.append(text)
            if self._log and (self._verbose or self._matters(level, text)):
                self._log(text)
        process.wait()

    @staticmethod
    def _matters(level: str, text: str) -> bool:
        on_gpu = Path("/dev/nvidiactl").exists()
        return level in ("warning", "error", "fatal") and (on_gpu or not NO_GPU_NOISE.search(text))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            if not self.running:
                time.sleep(0.3)  # the last log lines
                raise ServerError(f"Triton did not start.\n{self._errors()}")
            if self._get("/v2/health/ready") is not None:
                about = json.loads(self._get("/v2") or "{}")
                if about.get("name") != self.identity:
                    raise ServerError(
                        f"another server answers on {self.http_url} ({about.get('name')}); choose another --http-port"
                    )
                # Triton opens its metrics last, a moment after it calls itself ready.
                if NO_METRICS in self._arguments or self._get("/metrics", self.metrics_url) is not None:
                    return
            time.sleep(0.1)
        raise ServerError(f"Triton was not ready after {self._timeout:.0f} s.\n{self._errors()}")

    def _get(self, path: str, url: str | None = None) -> str | None:
        try:
            with urllib.request.urlopen(f"http://{url or self.http_url}{path}", timeout=2) as answer:
                return answer.read().decode() or "{}"
        except (OSError, urllib.error.URLError):
            return None

    def _errors(self) -> str:
        bad = [line for line in self.tail if " error " in line or " fatal " in line] or list(self.tail)[-15:]
        return "\n".join(dict.fromkeys(bad))


def choose_ports(address: str, wanted: Sequence[int]) -> list[int]:
    """Each wanted port if it is free, a free one for 0. All sockets stay open until all are chosen, so no port is given
    twice."""
    sockets, ports = [], []
    try:
        for port in wanted:
            probe = socket.socket()
            sockets.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise ServerError(
                    f"port {port} on {address} cannot be used ({error.strerror}); stop what uses it or choose another"
                ) from None
            ports.append(probe.getsockname()[1])
    finally:
        for probe in sockets:
            probe.close()
    return ports


def _readable(line: str) -> tuple[str, str]:
    match = LOG_LINE.match(line)
    if match is None:
        return "", line
    level = LEVELS[match["level"]]
    text = match["text"].strip('"')
    return level, f"{match['time']} {level} {text}"
