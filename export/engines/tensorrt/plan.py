"""The command line of the process that has TensorRT: builds a plan for the GPU of this machine, or runs one.

`export/engines/tensorrt/host.py` starts it. It needs nothing but `tensorrt` and Python 3.10: TensorRT may be installed
for an interpreter that has no PyTorch, and a build in a process of its own gives back all of its memory. A plan runs on
the TensorRT version and the kind of GPU that built it, and on no other.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble.records import ModelSpec
from ensemble.spec import MB, Variant
from export.engines.tensorrt.cuda_driver import CudaError, Device
from export.engines.tensorrt.definition import define
from export.engines.tensorrt.network import (
    PlanError,
    built_for,
    check_dtypes,
    import_tensorrt,
    progress_monitor,
    summary,
)
from export.engines.tensorrt.version import version_of

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m export.engines.tensorrt.plan about
  python -m export.engines.tensorrt.plan build --onnx model.onnx --plan model.plan --part decoder --variant '{}'
  python -m export.engines.tensorrt.plan run --plan model.plan    (answers requests on its pipes: see wire.py)"""


@dataclass(frozen=True)
class BuildOptions:
    """`workspace_mb` is scratch memory that a layer may use, 0 for all that the GPU has: TensorRT fuses large parts of
    these graphs into one layer, whose activations count as scratch (for the mask head of 1008 with 32 rows, 4096 MB
    were too little). `level` is TensorRT's builder optimisation level, 0 to 5, where 5 takes the longest;
    `timing_cache` is a file of kernel timings that makes later builds on this machine faster, or empty."""

    workspace_mb: int = 0
    level: int = 3
    timing_cache: str = ""


@dataclass(frozen=True)
class PlanInfo:
    """What was built, for the manifest. `activation_mb` is what a context of the largest shapes needs beside weights,
    inputs and outputs."""

    built_for: dict[str, str]
    seconds: float
    megabytes: float
    activation_mb: float
    layer_types: dict[str, int]
    precisions: dict[str, int]


def compile_onnx(
    onnx: Path,
    model: ModelSpec,
    plan: Path,
    precision: str = "fp16",
    options: BuildOptions | None = None,
) -> PlanInfo:
    """Builds `plan` from `onnx`.

    Raises PlanError with the parser's own words where TensorRT cannot read the graph, or where the build fails.
    """
    trt = import_tensorrt()
    version = version_of(trt.__version__)
    options = options or BuildOptions()
    start = time.perf_counter()
    device = Device()
    logger = trt.Logger(trt.Logger.WARNING)
    builder, network, config, _parser = define(trt, logger, version, onnx, model, precision, options.level)
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    cache = Path(options.timing_cache) if options.timing_cache and version.timing_caches else None
    _load_timing_cache(config, cache)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = progress_monitor(trt, model.name)
    log.info("%s: TensorRT %s builds %d layers", model.name, trt.__version__, network.num_layers)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise PlanError(
            f"{model.name}: TensorRT {trt.__version__} built no plan (its reason is in the log); with less GPU memory"
            f" free than it needs, lower --max-batch, --max-pairs or --workspace-mb; {device.free_bytes() >> 20} MB are"
            " free now"
        )
    with plan.open("wb") as file:
        file.write(memoryview(serialized))
    _save_timing_cache(config, cache)
    log.info("%s: built, reading it back", model.name)
    engine = trt.Runtime(logger).deserialize_cuda_engine(serialized)
    check_dtypes(trt, engine, model)
    return PlanInfo(
        built_for=built_for(trt, device),
        seconds=round(time.perf_counter() - start, 1),
        megabytes=round(plan.stat().st_size / MB, 1),
        activation_mb=round(version.activation_bytes(engine) / MB, 1),
        **summary(trt, engine),
    )


def _load_timing_cache(config: Any, path: Path | None) -> None:
    """Without a file the build has a cache of its own, for layers that occur more than once."""
    if path is not None:
        config.set_timing_cache(config.create_timing_cache(path.read_bytes() if path.is_file() else b""), False)


def _save_timing_cache(config: Any, path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.{os.getpid()}")  # two builds at once leave one whole file, not a mixture
        whole.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
        os.replace(whole, path)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m export.engines.tensorrt.plan",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("about", help="what plans built here are bound to")
    run = commands.add_parser("run", help="answer requests on standard input and output")
    run.add_argument("--plan", type=Path, required=True)
    build = commands.add_parser("build", help="build a plan from an ONNX file")
    build.add_argument("--onnx", type=Path, required=True)
    build.add_argument("--plan", type=Path, required=True)
    build.add_argument(
        "--part", required=True, help="vision_encoder, text_encoder, geometry_encoder, decoder or mask_head"
    )
    build.add_argument(
        "--variant", required=True, help='JSON, as in the front model\'s config.pbtxt; "{}" is the default'
    )
    build.add_argument("--workspace-mb", type=int, default=BuildOptions.workspace_mb, help="default %(default)s")
    build.add_argument("--level", type=int, default=BuildOptions.level, choices=range(6), help="default %(default)s")
    build.add_argument("--timing-cache", default="", help="file to read and write; default: none")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, the last line of standard output is JSON; 1: TensorRT or the driver refused, and that line says why."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # TensorRT prints to standard output from C++; results go to a copy of it, and everything else to standard error.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        if arguments.command == "run":
            from export.engines.tensorrt.worker import PlanRunner, serve

            serve(PlanRunner(arguments.plan), sys.stdin.buffer, out)
            return 0
        result = _about() if arguments.command == "about" else _build(arguments, parser)
    except (PlanError, CudaError, ImportError) as error:
        out.write(json.dumps({"error": str(error), "tensors": []}).encode() + b"\n")
        out.flush()
        return 1
    out.write(json.dumps(result).encode() + b"\n")
    out.flush()
    return 0


def _about() -> dict[str, str]:
    return built_for(import_tensorrt(), Device())


def _build(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    variant = Variant.from_dict(json.loads(arguments.variant))
    model = next((m for m in variant.sub_models if m.part == arguments.part), None)
    if model is None:
        parser.error(f"--part must be one of {', '.join(m.part for m in variant.sub_models)}, got {arguments.part!r}")
    options = BuildOptions(arguments.workspace_mb, arguments.level, arguments.timing_cache)
    return asdict(compile_onnx(arguments.onnx, model, arguments.plan, variant.precision, options))


if __name__ == "__main__":
    sys.exit(main())
