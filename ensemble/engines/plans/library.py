"""The TensorRT package that runs plans: what TensorRT for RTX, TensorRT 10 and 11, and TensorRT 8.6 have in common, and
the few calls in which they differ.

`trt` is the imported package. Nothing else of this project calls what only one of them has.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from pathlib import Path
from typing import Any

from ensemble.engines.plans import kernels, plan_file
from ensemble.engines.plans.cards import INSTALL, diagnosis, why_not_here
from ensemble.engines.plans.ways import Profile, Way
from ensemble.spec import MB

log = logging.getLogger(__name__)

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8"}
"""TensorRT's names -> NumPy's."""
MODULES = {"tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"), "tensorrt": ("tensorrt", "tensorrt_bindings")}
"""Engine -> names of its module: of the whole package, and of the bindings alone."""


class PlanError(RuntimeError):
    """A plan cannot be opened or run here; the message says why and what to do."""


def module_of(engine: str) -> str | None:
    """The name of an engine's installed module; None where there is none. Nothing is loaded."""
    return next((name for name in MODULES[engine] if importlib.util.find_spec(name)), None)


def why_not_in_this_python(engine: str) -> str | None:
    """Which package is missing to run plans of that engine, and how to get it; None where none is."""
    if module_of(engine) is None:
        remedy = INSTALL if engine == "tensorrt_rtx" else "serve plans in the container: docker compose up"
        return f"expected the package of engine {engine} in this Python, found none; {remedy}"
    if importlib.util.find_spec("cupy") is None:
        return 'expected CuPy in this Python, for the memory of plans, found none; pip install "sam3-triton[gpu]"'
    return None


def open_library(engine: str) -> Library:
    """Raises PlanError where it is not installed, or cannot be loaded."""
    name = module_of(engine)
    if name is None:
        raise PlanError(why_not_in_this_python(engine))
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        again = INSTALL.replace("install", "install --force-reinstall", 1) if engine == "tensorrt_rtx" else "install it"
        raise PlanError(f"engine {engine} cannot be loaded: {error}; {again}") from error
    try:
        return RtxLibrary(trt) if engine == "tensorrt_rtx" else Library(trt)
    except (RuntimeError, TypeError) as error:  # a constructor that returns nothing is a TypeError
        raise PlanError(
            f"engine {engine}, version {trt.__version__}, cannot be started: {error}; see whether nvidia-smi shows the"
            " card and whether its driver is new enough for this version"
        ) from error


@cache
def _logger(trt: Any) -> Any:
    """The one of this process: TensorRT keeps the first that it is given, and warns of others."""
    return trt.Logger(trt.Logger.WARNING)


class Library:
    """TensorRT 8.6 to 11: a plan is as it is, and is run as it was built."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        self._runtime = trt.Runtime(_logger(trt))

    def deserialize(self, path: Path, card: str, compute_capability: str, free_mb: float) -> Any:
        """The plan on the calling thread's GPU. Raises PlanError with what is wrong with it, MemoryError where the card
        has less memory free than the plan has bytes."""
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            _check_room(path, card, free_mb)
            raise PlanError(
                f"{path} cannot be opened by TensorRT {self.version} on {card} (compute capability"
                f" {compute_capability}, {free_mb:,.0f} MB free): it was built by another version or for another card,"
                " or there is too little memory; TensorRT's reason is in the log. Build it here with sam3-export"
                " --engine tensorrt --force"
            )
        return engine

    def scratch_bytes(self, engine: Any) -> int:
        """GPU memory that a context of the plan's largest sizes computes in."""
        v2 = getattr(engine, "device_memory_size_v2", None)
        return int(engine.device_memory_size if v2 is None else v2)

    def way(self, way: Way) -> Way:
        """What becomes of a way here: plans of these are finished, and graphs are not captured."""
        return Way(exact=False, graph=False)

    def context(self, engine: Any, way: Way) -> Any:
        """A context without memory of its own."""
        if hasattr(engine, "create_execution_context_without_device_memory"):
            return engine.create_execution_context_without_device_memory()  # to 10
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def set_scratch(self, context: Any, address: int, size: int) -> None:
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:  # 8.6
            context.device_memory = address

    def profile(self, engine: Any, inputs: list[str]) -> Profile:
        """The sizes that it was built for."""
        fixed = {name: tuple(engine.get_tensor_shape(name)) for name in inputs}
        triples = {
            name: [shape] * 3 if min(shape) > 0 else engine.get_tensor_profile_shape(name, 0)  # -1: it varies
            for name, shape in fixed.items()
        }
        return Profile(*({name: tuple(triple[i]) for name, triple in triples.items()} for i in range(3)))

    def dtype(self, engine: Any, name: str) -> str:
        """NumPy's name of a tensor's type. Raises PlanError for one that no sub-model has."""
        told = str(engine.get_tensor_dtype(name)).removeprefix("DataType.")
        if told not in DTYPES:
            raise PlanError(f"expected {name} of type {', '.join(DTYPES)}, the plan has {told}; export it again")
        return DTYPES[told]

    def finishes(self, engine: Any, plan: Path, card: str) -> bool:
        """Whether kernels have to be finished for this card and are not kept from an earlier start."""
        return False

    def keep_kernels(self, plan: Path, card: str) -> None:
        """Keeps what has been finished since for later starts."""


class RtxLibrary(Library):
    """TensorRT for RTX: a plan holds no kernels of a card; they are finished at first use and kept."""

    def __init__(self, trt: Any) -> None:
        super().__init__(trt)
        self._cache: Any = None
        self._kept: list[Any] = []

    def deserialize(self, path: Path, card: str, compute_capability: str, free_mb: float) -> Any:
        why = why_not_here(card, compute_capability)
        if why:
            raise PlanError(why)
        try:
            plan_file.check(path, self.version)
        except plan_file.PlanFileError as error:
            raise PlanError(str(error)) from error
        plan = path.read_bytes()
        validity, bits = self._runtime.get_engine_validity(plan)
        if validity == self.trt.EngineValidity.INVALID:
            raise PlanError(f"{path} cannot be run on {card}: {diagnosis(int(bits))}")
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            _check_room(path, card, free_mb)
            raise PlanError(
                f"{path} cannot be opened on {card} ({free_mb:,.0f} MB free): TensorRT's reason is in the log; where it"
                " speaks of memory, free some or serve a lower resolution, otherwise export it again with --force"
            )
        return engine

    def way(self, way: Way) -> Way:
        return way

    def context(self, engine: Any, way: Way) -> Any:
        trt, config = self.trt, engine.create_runtime_config()
        kinds = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if way.exact else kinds.LAZY
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if way.graph else graphs.DISABLED
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._cache is not None and not config.set_runtime_cache(self._cache):
            log.warning("TensorRT for RTX takes no kept kernels: they are finished again at each start")
        self._kept.append(config)
        return engine.create_execution_context(config)

    def finishes(self, engine: Any, plan: Path, card: str) -> bool:
        config = engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        self._kept = [config]
        return not kernels.load(plan, card, self._accepts)

    def keep_kernels(self, plan: Path, card: str) -> None:
        finished = self._cache.serialize()
        if finished is None:
            log.warning("TensorRT for RTX hands out no finished kernels: they are finished again at each start")
        else:
            kernels.store(plan, card, bytes(finished))

    def _accepts(self, kept: bytes) -> bool:
        """Whether kept kernels are of this version, card and driver; TensorRT compares them."""
        try:
            return bool(self._cache.deserialize(kept))
        except RuntimeError as error:
            log.warning("TensorRT for RTX cannot read kept kernels: %s", error)
            return False


def _check_room(path: Path, card: str, free_mb: float) -> None:
    """Raises MemoryError where there is less room than a plan's weights take."""
    size = path.stat().st_size / MB
    if free_mb < size:
        raise MemoryError(
            f"{path}: expected {size:,.0f} MB of free GPU memory for it, {card} has {free_mb:,.0f} MB free; free some,"
            " serve a lower resolution, or leave the text encoder to the CPU with --text-encoder cpu"
        )
