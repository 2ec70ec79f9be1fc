"""Runs, times and profiles one TensorRT plan for another process, in an interpreter that may have nothing but
`tensorrt`.

`serve` is the loop that answers requests over a pipe and knows nothing of TensorRT; `PlanRunner` is what it calls.
`python -m export.engines.tensorrt.plan run` starts the two. Memory, stream and timing are the CUDA driver's, messages
those of `export/engines/tensorrt/wire.py`. Python 3.10.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ensemble.spec import MB
from export.engines.tensorrt import wire
from export.engines.tensorrt.cuda_driver import CudaError, Device, DeviceMemory, Event, Stream
from export.engines.tensorrt.network import PlanError, built_for, dtype_names, import_tensorrt
from export.engines.tensorrt.version import version_of
from export.engines.tensorrt.wire import Array

Arrays = Mapping[str, Array]


class Runner(Protocol):
    """What `serve` calls; `facts` are sent once, before the first request."""

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def run(self, inputs: Arrays) -> dict[str, Array]: ...

    def time(self, inputs: Arrays, warm_up: int, repeats: int) -> dict[str, Any]: ...

    def profile(self, inputs: Arrays, repeats: int) -> dict[str, Any]: ...


def serve(runner: Runner, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers requests until the pipe closes. A request that fails gets {"error": sentence}; the next one is answered
    as usual."""
    wire.send(replies, {"ready": True, **runner.facts})
    while (message := wire.receive(requests)) is not None:
        header, inputs = message
        try:
            if header["do"] == "run":
                wire.send(replies, {}, runner.run(inputs))
            elif header["do"] == "time":
                wire.send(replies, runner.time(inputs, header["warm_up"], header["repeats"]))
            elif header["do"] == "profile":
                wire.send(replies, runner.profile(inputs, header["repeats"]))
            else:
                raise PlanError(f"expected run, time or profile, got {header['do']!r}")
        except (PlanError, CudaError) as error:
            wire.send(replies, {"error": str(error)})


class PlanRunner:
    """One open plan. Raises PlanError for a plan that another TensorRT or another kind of GPU built."""

    def __init__(self, plan: Path) -> None:
        trt = import_tensorrt()

        self.trt, self.plan = trt, plan
        self.device = Device()
        self.free_before = self.device.free_bytes()
        logger = trt.Logger(trt.Logger.WARNING)
        self.runtime = trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        here = built_for(trt, self.device)
        if self.engine is None:
            raise PlanError(
                f"{plan} was not built by TensorRT {here['tensorrt']} on a GPU like {here['gpu']} (compute capability"
                f" {here['compute_capability']}); build it here with sam3-export --engine tensorrt --force"
            )
        activations = version_of(trt.__version__).activation_bytes(self.engine) / MB
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise PlanError(
                f"{plan}: expected {activations:.0f} MB of free GPU memory, there is less; export with a lower"
                " --max-batch or --max-pairs"
            )
        self.stream = Stream(self.device)
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.dtypes = {name: dtype_names(trt)[self.engine.get_tensor_dtype(name)] for name in names}
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [n for n in names if n not in self.inputs]
        self.facts: dict[str, Any] = {"built_for": here, "activation_mb": round(activations, 1)}
        self._held: dict[str, DeviceMemory] = {}

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs of one execution."""
        shapes = self._bind(inputs)
        self._execute()
        return {n: Array(self.dtypes[n], shapes[n], self._held[n].download()) for n in self.outputs}

    def time(self, inputs: Arrays, warm_up: int, repeats: int) -> dict[str, Any]:
        """`ms`, the median of `repeats` executions by CUDA events, of which `spread_ms` are the fastest and the
        slowest; inputs lie on the GPU. `resident_mb` is what the open plan keeps: weights, activations of its largest
        shapes, inputs and outputs."""
        self._bind(inputs)
        for _ in range(warm_up):
            self._execute()
        marks = [Event(self.device) for _ in range(repeats + 1)]
        marks[0].record(self.stream)
        for mark in marks[1:]:
            self._enqueue()
            mark.record(self.stream)
        self.stream.synchronize()
        taken = [later.milliseconds_since(earlier) for earlier, later in pairwise(marks)]
        resident = (self.free_before - self.device.free_bytes()) / MB
        spread = [round(min(taken), 4), round(max(taken), 4)]
        return {"ms": statistics.median(taken), "spread_ms": spread, "resident_mb": round(resident, 1), **self.facts}

    def profile(self, inputs: Arrays, repeats: int) -> dict[str, Any]:
        """`layers`: name and median milliseconds of each of the plan's layers, the longest first. Measuring them slows
        the plan down."""
        trt = self.trt
        taken: dict[str, list[float]] = {}

        class Recorder(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                taken.setdefault(layer_name, []).append(ms)

        self._bind(inputs)
        self._execute()
        self.context.profiler = Recorder()  # it cannot be removed again, so a profiled plan is not timed any more
        for _ in range(repeats):
            self._execute()
        layers = [{"layer": name, "ms": statistics.median(times)} for name, times in taken.items()]
        return {"layers": sorted(layers, key=lambda layer: -layer["ms"])}

    def _bind(self, inputs: Arrays) -> dict[str, tuple[int, ...]]:
        """Uploads inputs, allocates outputs and tells the context where they are. Returns every tensor's shape."""
        for name in self.inputs:
            if name not in inputs or inputs[name].dtype != self.dtypes[name]:
                got = inputs[name].dtype if name in inputs else "nothing"
                raise PlanError(f"{self.plan.parent.parent.name}: expected {name} as {self.dtypes[name]}, got {got}")
            if not self.context.set_input_shape(name, inputs[name].shape):
                raise PlanError(
                    f"{self.plan.parent.parent.name}: {name} of shape {list(inputs[name].shape)} is outside the plan's"
                    " profile"
                )
        shapes = {name: tuple(self.context.get_tensor_shape(name)) for name in self.dtypes}
        for name, shape in shapes.items():
            size = wire.byte_count(self.dtypes[name], shape)
            if name not in self._held or self._held[name].size != size:
                if name in self._held:
                    self._held.pop(name).free()
                self._held[name] = DeviceMemory(self.device, size)
            if name in inputs:
                self._held[name].upload(inputs[name].data)
            self.context.set_tensor_address(name, self._held[name].address)
        # A copy from pageable memory may return before it has arrived, and this stream does not wait for others.
        self.device.synchronize()
        return shapes

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.handle):
            raise PlanError(f"{self.plan.parent.parent.name}: the plan did not run; TensorRT's reason is in the log")

    def _execute(self) -> None:
        self._enqueue()
        self.stream.synchronize()
