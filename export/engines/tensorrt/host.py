"""Plans as the process with PyTorch sees them: built from a torch sub-model, and run, in processes that have TensorRT.

The graph goes over as an ONNX file, tensors go over pipes (`export/engines/tensorrt/wire.py`).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ensemble.records import NUMPY_DTYPES, ModelSpec
from ensemble.spec import Variant
from export.engines.tensorrt import wire
from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.settings import TensorRT, child_environment
from export.engines.tensorrt.version import version_of

if TYPE_CHECKING:
    from torch import nn

DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in NUMPY_DTYPES.items()}


def build_plan(module: nn.Module, model: ModelSpec, variant: Variant, path: Path, settings: TensorRT) -> dict[str, Any]:
    """Builds the plan of a torch module at `path`, by way of an ONNX file that is removed again. Returns `PlanInfo` as
    plain data, for the manifest.

    Raises PlanError where the build fails, with what TensorRT said last.
    """
    from export.engines.int8_calibrated import quantise_noted
    from export.repository import file_sha256

    about, timings = settings.about(), ""
    if settings.cache:
        timings = str(Path(settings.cache) / f"tensorrt-{about['tensorrt']}-sm{about['compute_capability']}.timings")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        onnx = Path(folder) / "model.onnx"
        version_of(about["tensorrt"]).write_graph(module, model, onnx)
        said = quantise_noted(module, onnx)
        hashes = [file_sha256(file) for file in sorted(onnx.parent.glob("model.onnx*"))]  # weights may lie beside it
        info = settings.ask(
            *("build", "--onnx", str(onnx), "--plan", str(path), "--part", model.part),
            *("--variant", json.dumps(variant.to_dict()), "--workspace-mb", str(settings.workspace_mb)),
            *("--level", str(settings.level), "--timing-cache", timings),
        )
    shaping = {"level": settings.level, "workspace_mb": settings.workspace_mb}
    return {**info, "onnx_sha256": hashes, "settings": shaping, **said}


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
        return {name: np.frombuffer(a.data, NUMPY_DTYPES[a.dtype]).reshape(a.shape) for name, a in outputs.items()}

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
            raise PlanError(self._how_it_ended()) from error
        return self._reply()

    def _reply(self) -> tuple[dict[str, Any], dict[str, wire.Array]]:
        try:
            message = wire.receive(cast(Any, self._process.stdout))
        except wire.WireError as error:
            raise PlanError(f"{error}; {self._how_it_ended()}") from error
        if message is None:
            raise PlanError(self._how_it_ended())
        if "error" in message[0]:
            raise PlanError(message[0]["error"])
        return message

    def _how_it_ended(self) -> str:
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
