"""The embedded server: a real Triton on a model repository, for `sam3-serve`, the demo, the tests and the benchmarks.

The binary is NVIDIA's own, from the `nvidia-pytriton` wheel, with its python backend and nothing else; a container with
the full set of backends is what `docker-compose.yml` starts. What the server needs is checked before it starts, since
its own messages name symptoms and not causes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ensemble.ending import FOLDER, Ending
from ensemble.gate.believe import believe, doubts
from ensemble.gate.record import Record
from ensemble.loopback import open_direct
from ensemble.server import gpu, repository, start_check
from ensemble.server.closed import closing
from ensemble.server.health import Health
from ensemble.server.memory import MB, pool_mb
from ensemble.server.ports import choose_ports
from ensemble.server.process import ServerProcess, triton_command
from ensemble.server.repository import Served
from ensemble.server.requirements import (
    ServerError,
    check_all,
    environment,
    lay_out_backends,
)
from ensemble.server.videos import VideoServed, is_direct, videos_of
from ensemble.spec import Variant

LOOPBACK = "127.0.0.1"
"""Where Triton's own HTTP listens, behind the guard (`ensemble/server/guard.py`)."""
NO_METRICS = "--allow-metrics=false"
log = logging.getLogger(__name__)


class EmbeddedServer:
    """Starts Triton on a repository, waits until every model answers, stops it at the end of a `with` block.

    Port 0 means a free one. `resolutions` are those to serve, all where none is named. `front` changes their front
    models (`repository.FRONT_SETTINGS`), which otherwise are as exported. `gpus` are the numbers of the GPUs to serve
    on, the first where none is named; `gpu_memory_mb` is how much of each may be taken, what is free where it is None;
    `text_encoder` is one of `start_check.TEXT_ENCODER`. With `sub_models` each sub-model is a Triton model of its own.
    With `direct` clients call the engine model, without front models between; None: for one resolution on GPUs without
    videos. Videos are served where the repository has a tracker; what is remembered of their objects takes
    `video_memory_mb` (`videos.DEFAULT_MB` for None, 0: no videos), and the tracker may work at another resolution of
    the repository. `opened` are those of `closed.CLOSABLE` that stay open. Raises ServerError with a remedy where
    something is missing.
    """

    def __init__(
        self,
        repository: Path | str,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        *,
        address: str = "127.0.0.1",
        start_timeout: float = 180.0,
        arguments: Sequence[str] = (),
        resolutions: Sequence[int] = (),
        gpus: Sequence[int] = (0,),
        gpu_memory_mb: float | None = None,
        text_encoder: str = "auto",
        front: Mapping[str, int] | None = None,
        sub_models: bool = False,
        direct: bool | None = None,
        video_memory_mb: float | None = None,
        tracker_resolution: int | None = None,
        opened: Sequence[str] = (),
    ) -> None:
        self.repository = Path(repository).resolve()
        self.address, self._timeout, self._arguments = address, start_timeout, tuple(arguments)
        self._resolutions, self._gpu_memory_mb = tuple(resolutions), gpu_memory_mb
        self._text_encoder = "gpu" if sub_models and text_encoder == "auto" else text_encoder
        self._direct, self._opened = direct, tuple(opened)
        self._video_memory_mb, self._tracker_resolution = video_memory_mb, tracker_resolution
        self._gpus, self._front, self._sub_models = tuple(gpus), dict(front or {}), sub_models
        self.http_port, self.grpc_port, self.metrics_port = choose_ports(address, (http_port, grpc_port, metrics_port))
        self.identity = f"sam3-{uuid.uuid4().hex[:12]}"
        self.root = self.repository
        """The repository that Triton was started with."""
        self.ending = Ending(None)
        self._process: ServerProcess | None = None
        self._guard: ServerProcess | None = None
        self._started: list[Served] = []
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
        return self._process is not None and self._process.running

    @property
    def warnings(self) -> list[str]:
        """Triton's latest warnings and errors."""
        return list(self._process.warnings) if self._process else []

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> EmbeddedServer:
        """Returns when every model is loaded. Raises ServerError, with the server's own last errors, where that
        fails."""
        package, libpython = check_all(self.repository)
        served, cards = self._placed()
        if self._process is None:  # what fitted once fits again; a GPU may need a moment to be free of the last server
            self._check(served, cards)
            believe(self.repository, served, cards, self._videos(served))
        # A GPU more is work for as many front models more.
        fronts = [s.variant.front_instances * max(1, len(cards)) for s in served]
        wide = [replace(s, variant=replace(s.variant, front_instances=n)) for s, n in zip(served, fronts, strict=True)]
        self._scratch = Path(tempfile.mkdtemp(prefix="sam3-triton-"))
        try:
            videos = self._videos(wide)
            direct = is_direct(self._direct, served, self._sub_models, bool(videos))
            self.root = repository.lay_out(
                wide, self._scratch, list(cards), self._sub_models, self._gpu_memory_mb, direct, videos
            )
            chosen = {self.http_port, self.grpc_port, self.metrics_port}
            (inner_port,) = choose_ports(LOOPBACK, (0,), chosen)
            backends = lay_out_backends(package, self._scratch)
            ports = {"http": (LOOPBACK, inner_port)} | {
                kind: (self.address, port) for kind, port in (("grpc", self.grpc_port), ("metrics", self.metrics_port))
            }
            command = triton_command(package, backends, self.root, self.identity, ports)
            pool = round(self._pool([s.variant for s in served]) * MB)
            words = [f"{start_check.POOL_FLAG}{number}:" for number in cards]
            command += [f"{word}{pool}" for word in words if not any(a.startswith(word) for a in self._arguments)]
            command += [*closing(self._opened, self._arguments), *self._arguments]
            self.ending = Ending(self._scratch)
            told = environment(package, libpython) | {FOLDER: str(self._scratch)}
            self._process = ServerProcess(command, told)
            guard = [sys.executable, "-m", "ensemble.server.guard", "--address", self.address]
            guard += ["--port", str(self.http_port), "--target", f"{LOOPBACK}:{inner_port}"]
            self._guard = ServerProcess(guard, os.environ)
            self._wait_until_ready()
            self._process.watch_children({self._guard.pid: "the guard of the HTTP port"})
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, patience: float = 20.0) -> None:
        """Ends the server in order, or after `patience` seconds at once, and what it left in shared memory; may be
        called twice."""
        for process in (self._guard, self._process):  # Triton waits for connections that are still open
            if process is not None:
                process.stop(patience)
        for leftover in Path("/dev/shm").glob(f"{self.identity}*"):
            leftover.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def wait(self, timeout: float) -> None:
        """Blocks for `timeout` seconds while the server runs. Raises ServerError when it, or the process of one of its
        models, ends by itself."""
        assert self._process is not None, "start() comes first"
        self._process.wait(timeout)

    @property
    def health(self) -> Health:
        """What can be asked of the running server."""
        assert self.pid is not None, "start() comes first"
        return Health.of(self.http_url, self.metrics_url, self.root, self.pid)

    def probe(self, timeout: float = 60.0) -> None:
        """Raises ServerError where one of the front models does not answer a frame within `timeout` seconds."""
        health = self.health
        for front in health.fronts:
            health.probe(front, timeout)

    def check(self) -> dict[str, Any]:
        """What `start` would serve and on what, for people (`lines`) and programs. Raises ServerError where it cannot
        start."""
        check_all(self.repository)
        served, cards = self._placed()
        self._check(served, cards)
        videos = self._videos(served)
        report = start_check.report(served, cards, self._pool if self._sub_models else None, videos)
        report["measured_first"] = [d.said for d in doubts(served, cards, Record.read(self.repository), videos)]
        return report | {"lines": report["lines"] + report["measured_first"]}

    def _placed(self) -> tuple[list[Served], dict[int, gpu.Gpu | None]]:
        """What is served, and the GPUs that it is served on."""
        served = self._served()
        cards = self._cards(served)
        if self._process is not None:  # started again, with what it started with
            return self._started, cards
        asked = self._text_encoder, cards, self._gpu_memory_mb
        self._started = start_check.place_text_encoder(served, *asked, self._videos(served))
        return self._started, cards

    def _served(self) -> list[Served]:
        found = repository.read(self.repository)
        chosen = repository.choose(found, self._resolutions) if self._resolutions else found
        repository.check_engines(chosen, self._sub_models)
        if self._sub_models and self._text_encoder == "cpu" and any(s.on_gpu for s in chosen):
            raise ServerError("the text encoder can be on the CPU only beside the engine model: leave out --sub-models")
        if self._sub_models:
            return repository.adjusted(chosen, self._front)
        return repository.suited(chosen, self._front)

    def _videos(self, served: Sequence[Served]) -> list[VideoServed]:
        """The video front models beside these front models. Raises ServerError where they cannot be."""
        asked = self._video_memory_mb, self._tracker_resolution
        return [] if self._sub_models else videos_of(served, repository.read(self.repository), *asked)

    def _cards(self, served: Sequence[Served]) -> dict[int, gpu.Gpu | None]:
        """The GPUs to serve on by number, None for one that NVML does not show: no GPU at all for models of the CPU.
        Raises ServerError for a number that is not there."""
        if not any(s.on_gpu for s in served):
            return {}
        there = gpu.gpus()
        missing = [number for number in self._gpus if number >= len(there)]
        if there and missing:
            raise ServerError(f"expected GPUs 0 to {len(there) - 1}, got {', '.join(map(str, missing))}")
        return {number: there[number] if there else None for number in self._gpus}

    def _check(self, served: Sequence[Served], cards: Mapping[int, gpu.Gpu | None]) -> None:
        videos = tuple(self._videos(served))
        for card in cards.values() or (None,):
            host = start_check.Host(card, stated_mb=self._gpu_memory_mb, videos=videos)
            start_check.check(self.repository, served, host, self._pool if self._sub_models else None)

    def _pool(self, variants: Sequence[Variant]) -> float:
        """Megabytes of Triton's CUDA pool on each GPU: as in the further arguments; else what the sub-models hand over,
        which is nothing where all are in one process."""
        stated = start_check.stated_pool_mb(self._arguments)
        if stated is not None:
            return stated
        return pool_mb(variants) if self._sub_models else 0.0

    def _wait_until_ready(self) -> None:
        assert self._process is not None, "start() has made it"
        assert self._guard is not None, "start() has made it"
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            if not self.running:
                time.sleep(0.3)  # the last log lines
                raise ServerError(f"Triton did not start.\n{self._process.errors()}")
            if not self._guard.running:
                raise ServerError(f"nothing listens on {self.http_url}.\n{self._guard.errors()}")
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
        raise ServerError(f"Triton was not ready after {self._timeout:.0f} s.\n{self._process.errors()}")

    def _get(self, path: str, url: str | None = None) -> str | None:
        try:
            with open_direct(f"http://{url or self.http_url}{path}", 2) as answer:
                return answer.read().decode() or "{}"
        except (OSError, urllib.error.URLError):
            return None
