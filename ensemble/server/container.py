"""The container's first process: it makes the start check, starts the server and ends it in order.

`python3 -m ensemble.server.container tritonserver --model-repository=... ...` is what `docker-compose.yml` runs.

Front models that are not built are left out, and the log says so with the command that builds them. Environment
variables change what is served: `SAM3_RESOLUTIONS` ("672 560") names those that are wanted; `SAM3_MAX_BATCH`,
`SAM3_FRONT_INSTANCES` and `SAM3_QUEUE_DELAY_US` change their front models; `SAM3_GPU_MEMORY_MB` is the memory to reckon
with in place of what is free; `SAM3_DRAIN_SECONDS` how long a SIGTERM waits for frames that are here to be answered.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ensemble.ending import FOLDER, Ending
from ensemble.server import repository, start_check
from ensemble.server.closed import closing
from ensemble.server.drain import DRAIN_S, drain
from ensemble.server.health import Health
from ensemble.server.requirements import ServerError

log = logging.getLogger(__name__)
REPOSITORY_FLAG = "--model-repository="
RESOLUTIONS, MEMORY, DRAIN = "SAM3_RESOLUTIONS", "SAM3_GPU_MEMORY_MB", "SAM3_DRAIN_SECONDS"
PORTS = {"--http-port=": 8000, "--metrics-port=": 8002}
"""Triton's own defaults."""
POLL_S = 0.1
SETTINGS = {f"SAM3_{name.upper()}": name for name in repository.FRONT_SETTINGS}
"""Environment variable -> what it changes of the front models."""


def prepare(
    arguments: Sequence[str], resolutions: Sequence[int], stated_mb: float | None, front: Mapping[str, int]
) -> list[str]:
    """The server's arguments with the repository of what can be served in them. Raises ServerError where nothing can,
    or what is wanted cannot."""
    folder = next((Path(a.removeprefix(REPOSITORY_FLAG)) for a in arguments if a.startswith(REPOSITORY_FLAG)), None)
    if folder is None:
        raise ServerError(f"expected {REPOSITORY_FLAG}FOLDER among the server's arguments, got {' '.join(arguments)}")
    known = repository.read(folder)
    if not known:
        raise ServerError(
            f"expected a front model (sam3_r<resolution>) in {folder}, found none; write one with sam3-export"
        )
    wanted = repository.choose(known, resolutions) if resolutions else [s for s in known if not s.missing] or known
    served = repository.adjusted(wanted, front)
    pool = start_check.fixed_pool(arguments)
    start_check.check(folder, served, start_check.Host.here(stated_mb), pool)
    unbuilt = [s for s in known if s.missing]
    if unbuilt and not resolutions:
        names = ", ".join(s.variant.front_name for s in unbuilt)
        log.warning(
            f"not served, since not built: {names}; build"
            f" with\n{repository.build_command(unbuilt, folder, force=False)}"
        )
    arguments = [*arguments, *closing(arguments=arguments)]
    if served == known:
        return arguments
    root = repository.container_view(served, Path(tempfile.mkdtemp(prefix="sam3-")))
    return [f"{REPOSITORY_FLAG}{root}" if a.startswith(REPOSITORY_FLAG) else a for a in arguments]


def serve(command: Sequence[str], drain_s: float) -> int:
    """Runs the server until it ends, or until SIGTERM: then it is drained and ended. Returns its exit status."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: told.append(received))
    with tempfile.TemporaryDirectory(prefix="sam3-ending-") as folder:
        with subprocess.Popen(command, env=os.environ | {FOLDER: folder}) as process:
            while process.poll() is None and not told:
                time.sleep(POLL_S)
            if told:
                http, metrics = (f"localhost:{_port(command, flag)}" for flag in PORTS)
                drain(Ending(Path(folder)), Health.ask(http, metrics), drain_s)
                process.terminate()
        return process.returncode


def _port(command: Sequence[str], flag: str) -> int:
    return next((int(word.removeprefix(flag)) for word in command if word.startswith(flag)), PORTS[flag])


def main(argv: Sequence[str] | None = None) -> int:
    """The server's own exit status. 1: it cannot be served; 2: the command line or the environment cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments:
            raise ValueError("expected the server's command, for example tritonserver --model-repository=/models")
        resolutions = [int(word) for word in os.environ.get(RESOLUTIONS, "").replace(",", " ").split()]
        stated = os.environ.get(MEMORY)
        drain_s = float(os.environ.get(DRAIN) or DRAIN_S)
        front = {name: int(value) for variable, name in SETTINGS.items() if (value := os.environ.get(variable))}
        command = prepare(arguments, resolutions, float(stated) if stated else None, front)
    except ServerError as error:
        log.warning(str(error))
        return 1
    except ValueError as error:
        log.warning(
            f"{error}; {RESOLUTIONS} are numbers with spaces between them, {MEMORY}, {DRAIN} and {', '.join(SETTINGS)}"
            " one number each"
        )
        return 2
    return serve(command, drain_s)


if __name__ == "__main__":
    sys.exit(main())
