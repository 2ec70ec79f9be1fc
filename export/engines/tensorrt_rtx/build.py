"""Builds one plan of TensorRT for RTX from an ONNX file, in a process of its own, which gives its memory back.

The builder is told what the container's TensorRT 10 and 11 are told (`export/engines/tensorrt/definition.py`), and
beside it only which cards to build for. One file serves all of them: it holds the layers and their weights, and kernels
are finished on the card at first use. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemble.engines.plans import plan_file
from ensemble.records import ModelSpec
from ensemble.spec import MB, Variant
from export.engines.tensorrt.definition import define
from export.engines.tensorrt.network import PlanError
from export.engines.tensorrt.version import Version
from export.engines.tensorrt_rtx.listing import BuildLog, check_layers, summary
from export.engines.tensorrt_rtx.package import dotted, import_rtx

log = logging.getLogger(__name__)

LEVEL = 3
"""Builder optimisation level, as the container's by default."""


class VersionRtx(Version):
    """TensorRT for RTX 1.7: the network and the parser of TensorRT 10 and 11, strongly typed."""

    name = "TensorRT for RTX"
    timing_caches = False  # nothing is timed where there is no GPU

    def __init__(self, capabilities: Sequence[int]) -> None:
        self.capabilities = tuple(capabilities)

    def configure(self, trt: Any, network: Any, config: Any, model: ModelSpec, precision: str, onnx: Path) -> None:
        super().configure(trt, network, config, model, precision, onnx)
        config.num_compute_capabilities = len(self.capabilities)
        for i, capability in enumerate(self.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), i)


def compile_onnx(
    onnx: Path, model: ModelSpec, plan: Path, precision: str, capabilities: Sequence[int]
) -> dict[str, Any]:
    """Builds `plan` from `onnx` for cards of these compute capabilities (86 for 8.6). Returns what the manifest says of
    it: seconds, megabytes, the most memory that this process has taken, the GPU memory that the plan's largest sizes
    compute in (`scratch_mb`), layers of the network and how many of them give which dtype, and layers of the plan.

    Raises PlanError with TensorRT's words where it cannot read the graph, where it builds nothing, and where the plan
    has other types than the graph.
    """
    trt = import_rtx()
    start = time.perf_counter()
    said = BuildLog(trt)
    version = VersionRtx(capabilities)
    builder, network, config, _parser = define(trt, said.logger, version, onnx, model, precision, LEVEL)
    log.info("%s: TensorRT for RTX %s builds %d layers", model.name, trt.__version__, network.num_layers)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        cards = ", ".join(map(dotted, capabilities))
        raise PlanError(
            f"{model.name}: TensorRT for RTX {trt.__version__} built no plan for compute capability {cards}:"
            f" {'; '.join(said.errors[-2:]) or 'it gave no reason'}"
        )
    layers, kept = said.layers, islands(trt, network)
    check_layers(layers, model, kept)
    with plan.open("wb") as file:
        file.write(memoryview(serialized))
    plan_file.check(plan, trt.__version__)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "megabytes": round(plan.stat().st_size / MB, 1),
        "peak_memory_mb": peak_memory_mb(),
        "scratch_mb": said.scratch_mb,
        "layers": network.num_layers,
        "precisions": dict(precisions(network).most_common()),
        "operators_in_fp32": len(kept),
        **summary(layers),
    }


def peak_memory_mb() -> int:
    """The most memory that this process has had; `getrusage` would say its parent's, of which it was forked. 0 where
    the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) // 1024 if found else 0


def precisions(network: Any) -> Counter[str]:
    """How many layers of a typed network have a first output of each dtype; the builder changes none of them."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return Counter(str(layer.get_output(0).dtype).removeprefix("DataType.") for layer in layers if layer.num_outputs)


def islands(trt: Any, network: Any) -> set[str]:
    """Names of the graph's operators that compute in fp32 what fp16 cannot hold: normalisations, sums and products."""
    kinds = trt.LayerType
    kept = (kinds.NORMALIZATION, kinds.REDUCE, kinds.MATRIX_MULTIPLY)
    layers = (network.get_layer(i) for i in range(network.num_layers))
    wide = (layer for layer in layers if layer.type in kept and layer.get_output(0).dtype == trt.float32)
    return {name for layer in wide for name in re.findall(r"\[ONNX Layer: ([^\]]+)\]", layer.metadata)}


def main(argv: Sequence[str] | None = None) -> int:
    """The last line of standard output is JSON: what was built, or an `error`."""
    parser = argparse.ArgumentParser("python -m export.engines.tensorrt_rtx.build", description=__doc__)
    add = parser.add_argument
    add("--onnx", type=Path, required=True)
    add("--plan", type=Path, required=True)
    add("--part", required=True)
    add("--variant", required=True, help="JSON, as in the front model's config.pbtxt")
    add("--compute-capability", type=int, nargs="+", required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # TensorRT may print to standard output from C++: the answer goes to a copy of it.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    variant = Variant.from_dict(json.loads(arguments.variant))
    model = getattr(variant, arguments.part)
    capabilities = arguments.compute_capability
    try:
        result = compile_onnx(arguments.onnx, model, arguments.plan, variant.precision, capabilities)
    except (PlanError, ImportError) as error:
        result = {"error": str(error)}
    print(json.dumps(result), file=out, flush=True)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
