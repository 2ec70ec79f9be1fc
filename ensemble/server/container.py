"""The container's first process: it makes the start check, then becomes the server.

`python3 -m ensemble.server.container tritonserver --model-repository=... ...` is what `docker-compose.yml` runs.

Front models that are not built are left out, and the log says so with the command that builds them. Environment
variables change what is served: `SAM3_RESOLUTIONS` ("672 560") names those that are wanted; `SAM3_MAX_BATCH`,
`SAM3_FRONT_INSTANCES` and `SAM3_QUEUE_DELAY_US` change their front models; `SAM3_GPU_MEMORY_MB` is the memory to reckon
with in place of what is free.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ensemble.server import repository, start_check
from ensemble.server.closed import closing
from ensemble.server.requirements import ServerError

log = logging.getLogger(__name__)
REPOSITORY_FLAG = "--model-repository="
RESOLUTIONS, MEMORY = "SAM3_RESOLUTIONS", "SAM3_GPU_MEMORY_MB"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Never returns where all is well: the process is the server then. 1: it cannot be served; 2: the command line or
    the environment cannot be."""
    logging.basicConfig(level=logging.INFO, format="start check: %(message)s")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments:
            raise ValueError("expected the server's command, for example tritonserver --model-repository=/models")
        resolutions = [int(word) for word in os.environ.get(RESOLUTIONS, "").replace(",", " ").split()]
        stated = os.environ.get(MEMORY)
        front = {name: int(value) for variable, name in SETTINGS.items() if (value := os.environ.get(variable))}
        command = prepare(arguments, resolutions, float(stated) if stated else None, front)
    except ServerError as error:
        log.warning(str(error))
        return 1
    except ValueError as error:
        log.warning(
            f"{error}; {RESOLUTIONS} are numbers with spaces between them, {MEMORY} and {', '.join(SETTINGS)} one"
            " number each"
        )
        return 2
    sys.stdout.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
