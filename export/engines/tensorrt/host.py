"""The side of TensorRT that has PyTorch: a torch sub-model in, a plan built and run by other processes out.

TensorRT is imported by the interpreter that `SAM3_TENSORRT_PYTHON` names (by default this one), never here: it may be a
Python of its own, and a process that ends gives back its GPU memory. The graph goes over as an ONNX file, tensors over
pipes (`export/engines/tensorrt/wire.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from ensemble.records import ModelSpec
from ensemble.spec import Variant
from export.engines.tensorrt import wire
from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.plan import BuildOptions

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[3]
PYTHON_VARIABLE = "SAM3_TENSORRT_PYTHON"
START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from export.engines.tensorrt.plan import main;"
    " sys.exit(main(sys.argv[1:]))"
)
"""The folder of this project comes with the command: the other interpreter's own paths may not name it."""
DTYPES = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32, "FP16": np.float16}
DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorRT:
    """`python` is the interpreter (or a script that starts it) that has TensorRT; `cache` is the folder of its timing
    caches, empty for none."""

    python: str = ""
    workspace_mb: int = BuildOptions.workspace_mb
    level: int = BuildOptions.level
    cache: str = ""

    @property
    def interpreter(self) -> str:
        return self.python or os.environ.get(PYTHON_VARIABLE) or sys.executable

    def command(self, *arguments: str) -> list[str]:
        """The command line of `export.engines.tensorrt.plan` in that interpreter."""
        return [self.interpreter, "-c", START, str(ROOT), *arguments]

    def about(self) -> dict[str, str]:
        """What plans built here are bound to. Raises PlanError where TensorRT or the GPU is missing."""
        return dict(_about(self.interpreter))


@cache
def _about(python: str) -> Mapping[str, str]:
    return _json_of(TensorRT(python).command("about"), python, lambda line: None)


def build_plan(
    module: nn.Module, model: ModelSpec, variant: Variant, path: Path, settings: TensorRT, report: Callable[[str], None]
) -> dict[str, Any]:
    """Torch module -> ONNX -> plan at `path`; the ONNX file is removed again. Returns `PlanInfo` as plain data, for the
    manifest.

    Raises PlanError where the build fails, with what TensorRT said last.
    """
    from export.engines.onnx import export_onnx
    from export.engines.tensorrt.v8 import for_tensorrt_8, untyped
    from export.repository import file_sha256

    onnx = path.with_suffix(".onnx")
    about, timings = settings.about(), ""
    legacy = about["tensorrt"].startswith("8.")
    export_onnx(*(untyped(module, model) if legacy else (module, model)), onnx)
    if settings.cache and not legacy:  # 8.6 writes timings that it cannot read: "Myelin error from unknown graph"
        timings = str(Path(settings.cache) / f"tensorrt-{about['tensorrt']}-sm{about['compute_capability']}.timings")
    arguments = ["build", "--onnx", str(onnx), "--plan", str(path), "--part", model.part]
    arguments += ["--variant", json.dumps(asdict(variant)), "--workspace-mb", str(settings.workspace_mb)]
    arguments += ["--level", str(settings.level), *(["--timing-cache", timings] if timings else [])]
    data, told = onnx.with_name(onnx.name + ".data"), onnx.with_suffix(".dtypes.json")
    if legacy:
        arguments += ["--dtypes", str(for_tensorrt_8(onnx, model))]
    try:
        hashes = [file_sha256(file) for file in (onnx, data) if file.is_file()]
        info = _json_of(settings.command(*arguments), settings.interpreter, report)
        return {
            **info,
            "onnx_sha256": hashes,
            "settings": {"level": settings.level, "workspace_mb": settings.workspace_mb},
        }
    finally:
        for leftover in (onnx, data, told):
            leftover.unlink(missing_ok=True)


class PlanProcess:
    """An open plan in a process of its own: called with arrays by name it returns arrays by name. `close` ends it.

    `command` starts a process that answers as `export/engines/tensorrt/worker.py` does. Raises PlanError with its
    reason where it does not start, where a request is refused, and where it dies.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody reads would block it
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=child_environment(command[0])
        )
        self.facts, _ = self._reply()

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        _, outputs = self._ask({"do": "run"}, arrays)
        return {name: np.frombuffer(a.data, DTYPES[a.dtype]).reshape(a.shape) for name, a in outputs.items()}

    def time(self, arrays: Mapping[str, np.ndarray], warm_up: int = 10, repeats: int = 30) -> dict[str, Any]:
        """`ms` (median by CUDA events), `spread_ms`, `activation_mb` and `resident_mb` of executions on these
        inputs."""
        return self._ask({"do": "time", "warm_up": warm_up, "repeats": repeats}, arrays)[0]

    def profile(self, arrays: Mapping[str, np.ndarray], repeats: int = 10) -> list[dict[str, Any]]:
        """The plan's layers with their median milliseconds, the longest first."""
        return self._ask({"do": "profile", "repeats": repeats}, arrays)[0]["layers"]

    def close(self) -> None:
        """Ends the process; its GPU memory is free when this returns."""
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> PlanProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(
        self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, wire.Array]]:
        tensors = {}
        for name, array in arrays.items():
            held = np.ascontiguousarray(array)
            tensors[name] = wire.Array(
                DTYPE_NAMES[held.dtype], held.shape, cast(bytearray, held.reshape(-1).view(np.uint8).data)
            )
        try:
            wire.send(cast(Any, self._process.stdin), header, tensors)
        except wire.WireError as error:
            raise PlanError(self._obituary()) from error
        return self._reply()

    def _reply(self) -> tuple[dict[str, Any], dict[str, wire.Array]]:
        try:
            message = wire.receive(cast(Any, self._process.stdout))
        except wire.WireError as error:
            raise PlanError(f"{error}; {self._obituary()}") from error
        if message is None:
            raise PlanError(self._obituary())
        if "error" in message[0]:
            raise PlanError(message[0]["error"])
        return message

    def _obituary(self) -> str:
        self._process.kill()
        self._process.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-5:]
        return (
            f"the process with the plan ended with status {self._process.returncode}; it said last:"
            f" {' | '.join(last) or 'nothing'}"
        )


def open_plan(path: Path, settings: TensorRT) -> PlanProcess:
    """The plan at `path`, in a process of its own."""
    return PlanProcess(settings.command("run", "--plan", str(path)))


def child_environment(python: str) -> dict[str, str]:
    """This process's environment; for another interpreter without the paths that are meant for this one."""
    environment = dict(os.environ, CUDA_MODULE_LOADING="LAZY")  # kernels that a plan does not use take no GPU memory
    if python != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
    return environment


def _json_of(command: Sequence[str], python: str, report: Callable[[str], None]) -> dict[str, Any]:
    """Runs a command to its end, hands its standard error on line by line, and returns the JSON of its last line of
    standard output."""
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
            report(line.strip())
        answer = cast(IO[str], process.stdout).read().strip().splitlines()
    try:
        result = json.loads(answer[-1])
    except (ValueError, IndexError):
        result = {"error": f"{python} ended with status {process.returncode} and no answer"}
    if "error" in result:
        raise PlanError(f"{result['error']}{' | '.join(['', *last]) if last else ''}")
    return result
