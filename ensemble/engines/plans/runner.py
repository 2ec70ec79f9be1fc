"""Runs one plan: addresses of GPU tensors in, GPU tensors out, on the stream that all plans of the process share."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cupy
import cupyx
import numpy as np

from ensemble.engines.plans.gpu import shared_gpu
from ensemble.engines.plans.library import PlanError, open_library
from ensemble.engines.plans.ways import Shapes, Way, way_of
from ensemble.spec import MB, Tracker, Variant

_ALL = Variant(tracker=Tracker())
ON_GPU = {
    f"sam3_{model.part}": frozenset(t.name for t in model.outputs if not t.host)
    for model in (*_ALL.sub_models, *_ALL.tracker_parts)
}
"""How a sub-model's name begins -> its outputs that stay on the GPU, in every variant. Masks of a detector are read on
the host, and those of a tracker's step, which have the same name, are not."""
MAX_GRAPHS = 8
"""Sizes of one sub-model whose calls keep their inputs and outputs in place, as a graph needs it."""
ALIGNED = 256
"""Bytes; CuPy's own memory is, and TensorRT may choose kernels that need it."""
log = logging.getLogger(__name__)
Tensors = dict[str, Any]


class PlanRunner:
    """One plan on one GPU. `engine` is `tensorrt_rtx` or `tensorrt`.

    Raises PlanError for a plan, a package or a card that do not go together, MemoryError where there is no room.
    """

    def __init__(self, engine: str, path: Path, device_id: int) -> None:
        self._name = path.resolve().parents[1].name
        self._kept = next((names for start, names in ON_GPU.items() if self._name.startswith(start)), frozenset[str]())
        self._gpu = shared_gpu(device_id)
        self._library = library = open_library(engine)
        gpu = self._gpu
        with gpu.working():
            self._plan = library.deserialize(path, gpu.name, gpu.compute_capability, gpu.free_mb)
        names = [self._plan.get_tensor_name(i) for i in range(self._plan.num_io_tensors)]
        mode = library.trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self._plan.get_tensor_mode(name) == mode]
        self.outputs = [name for name in names if name not in self.inputs]
        self._dtypes = {name: np.dtype(library.dtype(self._plan, name)) for name in names}
        self._profile = library.profile(self._plan, self.inputs)
        self._contexts: dict[Way, Any] = {}
        self._held: OrderedDict[Any, tuple[Tensors, Tensors]] = OrderedDict()
        self._scratch = (0, 0)
        size = library.scratch_bytes(self._plan)
        self.memory = {"plan_mb": round(path.stat().st_size / MB, 1), "scratch_mb": round(size / MB, 1)}
        self._gpu.share(size, self._set_scratch)
        self._finish(path)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Tensors:
        """`SubModel` of `ensemble/engines`: NumPy arrays of the outputs that the pipeline reads, finished; of the
        others CuPy arrays, which may still be under way on the plans' stream. Where a graph is replayed, those are
        valid until the next call of the same sizes."""
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise PlanError(f"{self._name}: the plan asks for {', '.join(missing)} too; export it again")
        with self._gpu.working() as stream:
            given = {name: self._on_gpu(name, inputs[name], stream) for name in self.inputs}
            made = self._run(given, stream)
            kept = self._kept
            wanted = {name: made[name] if name in kept else _to_host(made[name], stream) for name in outputs}
            if not kept.issuperset(outputs):
                stream.synchronize()
        return wanted

    def _run(self, given: Tensors, stream: Any) -> Tensors:
        shapes = {name: tensor.shape for name, tensor in given.items()}
        outside = self._profile.why_outside(shapes)
        if outside:
            raise PlanError(f"{self._name}: {outside}; export it with larger limits")
        way = self._library.way(way_of(shapes, self._profile))
        context = self._context(way, stream)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise PlanError(f"{self._name}: TensorRT refuses {name} of {list(shape)}; its reason is in the log")
        if way.graph:
            given, made = self._in_place(given, context)
        else:
            made = self._allocate(context)
        for name, tensor in {**given, **made}.items():
            if not context.set_tensor_address(name, tensor.data.ptr):
                raise PlanError(f"{self._name}: TensorRT refuses the address of {name}; its reason is in the log")
        if not context.execute_async_v3(stream.ptr):
            sizes = ", ".join(f"{name} of {list(shape)}" for name, shape in shapes.items())
            raise PlanError(
                f"{self._name}: TensorRT did not run the plan for {sizes}; its reason is in the log. Where it speaks of"
                " memory, serve a lower resolution; otherwise build the plan again with sam3-export --force"
            )
        return made

    def _allocate(self, context: Any) -> Tensors:
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self.outputs}
        unknown = [name for name, shape in shapes.items() if min(shape, default=0) < 0]
        if unknown:
            raise PlanError(f"{self._name}: the plan gives no size for {', '.join(unknown)}; export it again")
        return {name: cupy.empty(shape, self._dtypes[name]) for name, shape in shapes.items()}

    def _in_place(self, given: Tensors, context: Any) -> tuple[Tensors, Tensors]:
        """Copies inputs to where the graph of their sizes reads them; returns those and its outputs."""
        sizes = tuple(tensor.shape for tensor in given.values())
        if sizes not in self._held:
            self._held[sizes] = {n: cupy.empty_like(t) for n, t in given.items()}, self._allocate(context)
            if len(self._held) > MAX_GRAPHS:
                self._held.popitem(last=False)
        self._held.move_to_end(sizes)
        inputs, outputs = self._held[sizes]
        for name, tensor in given.items():
            inputs[name][...] = tensor
        return inputs, outputs

    def _context(self, way: Way, stream: Any) -> Any:
        if way not in self._contexts:
            context = self._library.context(self._plan, way)
            if context is None:
                raise MemoryError(
                    f"{self._name}: out of memory for another context, {self._gpu.free_mb:,.0f} MB are free; serve"
                    " fewer resolutions or a lower one on this GPU"
                )
            self._library.set_scratch(context, *self._scratch)
            # TensorRT up to 8.6 chooses the only profile for the first context of a plan alone.
            if context.active_optimization_profile != 0 and not context.set_optimization_profile_async(0, stream.ptr):
                raise PlanError(f"{self._name}: TensorRT refuses the plan's profile; its reason is in the log")
            self._contexts[way] = context
        return self._contexts[way]

    def _set_scratch(self, address: int, size: int) -> None:
        """Takes effect at the next call. Contexts that have captured graphs, which read the old memory, are made
        again."""
        self._scratch = address, size
        self._contexts = {way: context for way, context in self._contexts.items() if not way.graph}
        for context in self._contexts.values():
            self._library.set_scratch(context, address, size)

    def _finish(self, path: Path) -> None:
        """Runs the sizes of the profile once: TensorRT for RTX makes its kernels then, which the next start finds."""
        with self._gpu.working():  # kept kernels are compared with the calling thread's GPU
            finished = not self._library.finishes(self._plan, path, self._gpu.name)
        if finished:
            return
        start, sizes = time.perf_counter(), self._profile.all
        for number, shapes in enumerate(sizes, 1):
            log.warning(
                "%s: finishing kernels for %s, sizes %d of %d (at the first start alone)",
                *(self._name, self._gpu.name, number, len(sizes)),
            )
            self._try(shapes)
        with self._gpu.working():
            self._library.keep_kernels(path, self._gpu.name)
        log.warning("%s: kernels finished in %.0f s", self._name, time.perf_counter() - start)

    def _try(self, shapes: Shapes) -> None:
        with self._gpu.working() as stream:
            self._run({name: cupy.zeros(shape, self._dtypes[name]) for name, shape in shapes.items()}, stream)
            stream.synchronize()

    def _on_gpu(self, name: str, value: Any, stream: Any) -> Any:
        """The tensor on this GPU in C order, aligned. Raises PlanError for another dtype than the plan's."""
        if isinstance(value, np.ndarray):
            held = np.ascontiguousarray(value)
            tensor = cupy.empty(held.shape, held.dtype)
            tensor.set(held, stream=stream)  # pageable memory is read before this returns
        else:
            tensor = cupy.ascontiguousarray(value if isinstance(value, cupy.ndarray) else cupy.from_dlpack(value))
            if tensor.data.ptr % ALIGNED:  # as frames from the middle of a batch may be
                tensor = tensor.copy()
        if tensor.dtype != self._dtypes[name]:
            raise PlanError(f"{self._name}: expected {name} as {self._dtypes[name]}, got {tensor.dtype}")
        return tensor


def _to_host(tensor: Any, stream: Any) -> np.ndarray:
    """The tensor in pinned host memory, which CuPy keeps for the next call; not finished before the stream is."""
    host = cupyx.empty_pinned(tensor.shape, tensor.dtype)
    cupy.cuda.runtime.memcpyAsync(
        host.ctypes.data, tensor.data.ptr, tensor.nbytes, cupy.cuda.runtime.memcpyDeviceToHost, stream.ptr
    )
    return host
