"""`sam3-serve`: a model repository in, a served one out for as long as you like: a server that stops answering is
started again on the same ports."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ensemble.server.embedded import EmbeddedServer, choose_ports
from ensemble.server.repository import FRONT_SETTINGS
from ensemble.server.requirements import ServerError

DEFAULT_PORTS = (8000, 8001, 8002)
"""HTTP, gRPC and metrics, as Triton's own defaults."""
RESTARTS, PER_SECONDS = 5, 600.0
"""More restarts than that in that time mean that starting again does not help."""
PATIENCE = 2
"""Failed probes in a row before a restart: one may be a burst of work."""


def supervise(
    server: EmbeddedServer, interval: float, say: Callable[[str], None], ended: threading.Event | None = None
) -> None:
    """Probes the server every `interval` seconds with a real inference and restarts it where it does not answer.

    Ends when `ended` is set, or with a ServerError where starting again does not help.
    """
    ended = ended or threading.Event()
    restarts: deque[float] = deque(maxlen=RESTARTS)
    while not ended.is_set():
        reason = _until_broken(server, interval, ended)
        if reason is None:
            return
        if len(restarts) == RESTARTS and time.monotonic() - restarts[0] < PER_SECONDS:
            raise ServerError(
                f"{reason}\nstarted again {RESTARTS} times within {PER_SECONDS / 60:.0f} minutes: giving up"
            )
        restarts.append(time.monotonic())
        say(f"{reason}\nstarting Triton again")
        server.stop()
        server.start()
        say("ready again")


def _until_broken(server: EmbeddedServer, interval: float, ended: threading.Event) -> str | None:
    """Blocks while the server answers; returns why it does not, None when the supervision ended."""
    failed = 0
    while not ended.is_set():
        try:
            server.wait(interval)
            server.probe()
            failed = 0
        except ServerError as error:
            failed += 1
            if failed >= PATIENCE or not server.running:
                return str(error)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the embedded Triton on a repository and keeps it until Ctrl-C. Exit status 1: it cannot start, or cannot
    be kept."""
    parser = argparse.ArgumentParser(
        prog="sam3-serve",
        description="Serve a model repository with the embedded Triton server (no Docker, no GPU needed).",
        epilog="example: sam3-serve --repository build/repository --http-port 8000 --grpc-port 8001",
    )
    parser.add_argument("--repository", type=Path, required=True, help="folder that sam3-export wrote")
    for kind, port in zip(("http", "grpc", "metrics"), DEFAULT_PORTS, strict=True):
        parser.add_argument(
            f"--{kind}-port", type=int, help=f"0 for a free one; default {port}, or a free one where it is taken"
        )
    parser.add_argument("--address", default="127.0.0.1", help="interface to listen on; default: this machine only")
    parser.add_argument(
        "--resolutions", type=int, nargs="+", default=[], help="serve these alone; default: all of the repository"
    )
    add_front_options(parser)
    parser.add_argument(
        "--gpu-memory-mb", type=float, help="memory that the models may take; default: what is free on the GPU"
    )
    parser.add_argument(
        "--probe-interval",
        type=float,
        default=20.0,
        help="seconds between probes by a real inference; default %(default)s",
    )
    parser.add_argument("--verbose", action="store_true", help="show Triton's whole log")
    parser.add_argument("arguments", nargs="*", help="further tritonserver arguments, after --")
    options = parser.parse_args(argv)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server = EmbeddedServer(
            options.repository,
            *_ports(options.address, (options.http_port, options.grpc_port, options.metrics_port)),
            address=options.address,
            verbose=options.verbose,
            arguments=options.arguments,
            resolutions=options.resolutions,
            gpu_memory_mb=options.gpu_memory_mb,
            front=front_settings(options),
            log=say,
        )
        say(f"starting Triton on {server.repository} ...")
        with server:
            print(
                json.dumps(
                    {"http": server.http_url, "grpc": server.grpc_url, "metrics": server.metrics_url, "pid": server.pid}
                ),
                flush=True,
            )
            say("ready; Ctrl-C stops it")
            supervise(server, options.probe_interval, say)
    except KeyboardInterrupt:
        say("stopped")
    except ServerError as error:
        say(f"sam3-serve: {error}")
        return 1
    return 0


def add_front_options(parser: argparse.ArgumentParser) -> None:
    """What `EmbeddedServer` can change of the front models that it serves; `front_settings` reads it."""
    for name, what in FRONT_SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{what}; default: as exported")


def front_settings(options: argparse.Namespace) -> dict[str, int]:
    """Those of `add_front_options` that were given."""
    return {name: value for name in FRONT_SETTINGS if (value := getattr(options, name)) is not None}


def _ports(address: str, given: Sequence[int | None]) -> list[int]:
    """The given ports; for the others Triton's defaults, or free ones where any of those is taken."""
    try:
        choose_ports(address, DEFAULT_PORTS)
        defaults: Sequence[int] = DEFAULT_PORTS
    except ServerError:
        defaults = (0, 0, 0)
    return [default if port is None else port for port, default in zip(given, defaults, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
