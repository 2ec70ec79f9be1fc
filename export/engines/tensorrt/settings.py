"""How TensorRT is used on this machine: which interpreter has it, and how plans are built.

TensorRT is imported by the interpreter that `SAM3_TENSORRT_PYTHON` or `--tensorrt-python` names (by default this one),
never in this process: it may be a Python of its own, and a process that ends gives back its GPU memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.plan import BuildOptions

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[3]
PYTHON_VARIABLE = "SAM3_TENSORRT_PYTHON"
START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from export.engines.tensorrt.plan import main;"
    " sys.exit(main(sys.argv[1:]))"
)
"""The folder of this project comes with the command: the other interpreter's own paths may not name it."""


@dataclass(frozen=True)
class TensorRT:
    """`python` is the interpreter (or a script that starts it) that has TensorRT, `cache` the folder of its timing
    caches, empty for none; `compute_capability` are the GPUs that TensorRT for RTX builds for (86 for 8.6), empty for
    its own choice; for the others see `BuildOptions`."""

    python: str = ""
    workspace_mb: int = BuildOptions.workspace_mb
    level: int = BuildOptions.level
    cache: str = ""
    compute_capability: tuple[int, ...] = ()

    @property
    def interpreter(self) -> str:
        return self.python or os.environ.get(PYTHON_VARIABLE) or sys.executable

    def command(self, *arguments: str) -> list[str]:
        """The command line of `export.engines.tensorrt.plan` in that interpreter."""
        return [self.interpreter, "-c", START, str(ROOT), *arguments]

    def about(self) -> dict[str, str]:
        """What plans built here are bound to. Raises PlanError where TensorRT or the GPU is missing."""
        return dict(_about(self.interpreter))

    def ask(self, *arguments: str) -> dict[str, Any]:
        """The JSON that `command` ends with. Raises PlanError as `answer_of` does."""
        return answer_of(self.command(*arguments))


def answer_of(command: Sequence[str]) -> dict[str, Any]:
    """The JSON that a command of TensorRT's ends with; what it prints on the way becomes log lines. Raises PlanError
    where it fails, with its last lines."""
    python = command[0]
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=child_environment(python),
        )
    except OSError as error:
        raise PlanError(
            f"expected a Python with TensorRT at {python}: {error}; name one with --tensorrt-python"
        ) from error
    last: deque[str] = deque(maxlen=5)
    with process:
        for line in cast(IO[str], process.stderr):
            last.append(line.strip())
            log.info("%s", line.strip())
        answer = cast(IO[str], process.stdout).read().strip().splitlines()
    try:
        result = json.loads(answer[-1])
    except (ValueError, IndexError):
        result = {"error": f"{python} ended with status {process.returncode} and no answer"}
    if "error" in result:
        raise PlanError(" | ".join([result["error"], *last]))
    return result


@cache
def _about(interpreter: str) -> Mapping[str, str]:
    return TensorRT(interpreter).ask("about")


def child_environment(python: str) -> dict[str, str]:
    """This process's environment; for another interpreter without the paths that are meant for this one."""
    environment = dict(os.environ, CUDA_MODULE_LOADING="LAZY")  # kernels that a plan does not use take no GPU memory
    if python != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
    return environment


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sam3-export` that `from_arguments` reads."""
    add, usual = parser.add_argument_group("engines tensorrt and tensorrt_rtx").add_argument, TensorRT()
    add(
        "--compute-capability",
        type=capability,
        nargs="+",
        default=[],
        metavar="SM",
        help="GPUs that tensorrt_rtx builds for, as 86 89 120; default: this machine's, without one all three",
    )
    add("--tensorrt-python", default="", help=f"Python that has TensorRT; default: ${PYTHON_VARIABLE}, or this one")
    add(
        "--builder-level",
        type=int,
        default=usual.level,
        choices=range(6),
        help="0 to 5: longer builds, faster plans; default %(default)s",
    )
    add(
        "--workspace-mb",
        type=int,
        default=usual.workspace_mb,
        help="scratch memory that a layer may use, 0 for no limit; default %(default)s",
    )
    add(
        "--timing-cache",
        default=str(Path("~/.cache/sam3-export").expanduser()),
        help="folder that keeps kernel timings between builds, empty for none; default %(default)s",
    )


def capability(text: str) -> int:
    """86 for "86" and for "8.6", as they are given on the command line."""
    return int(text.replace(".", ""))


def from_arguments(arguments: argparse.Namespace) -> TensorRT:
    own = arguments.workspace_mb, arguments.builder_level, arguments.timing_cache
    return TensorRT(arguments.tensorrt_python, *own, tuple(dict.fromkeys(arguments.compute_capability)))
