"""What a builder of TensorRT is told of a graph: the parsed network, its checks, the configuration and the profile.

TensorRT 8.6, 10 and 11 in the container and TensorRT for RTX from the package index are told the same by this one
function; what they differ in are the methods of a `Version`. So a graph that is built for the one on any machine says
something about the other. Standard library only, Python 3.10; `trt` is the imported package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ensemble.records import ModelSpec
from export.engines.tensorrt.network import PlanError, check_names, fix_single_sizes, profile_shapes
from export.engines.tensorrt.version import Version


class Definition(NamedTuple):
    """`builder.build_serialized_network(network, config)` makes the plan. The parser holds the weights until then."""

    builder: Any
    network: Any
    config: Any
    parser: Any


def define(
    trt: Any, logger: Any, version: Version, onnx: Path, model: ModelSpec, precision: str, level: int
) -> Definition:
    """The network of the graph at `onnx`, to be built as `model` at this optimisation `level` (0 to 5).

    Raises PlanError with the parser's own words where TensorRT cannot read the graph, and where names or dtypes are not
    the record's.
    """
    builder = trt.Builder(logger)
    network = version.create_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(min(3, parser.num_errors)))
        raise PlanError(f"{model.name}: {version.name} {trt.__version__} cannot read {onnx.name}: {reasons}")
    check_names(network, model)
    fix_single_sizes(network, model)
    config = builder.create_builder_config()
    config.builder_optimization_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector and the profiler then name the layers
    profile = builder.create_optimization_profile()
    for name, shapes in profile_shapes(model).items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    version.configure(trt, network, config, model, precision, onnx)
    return Definition(builder, network, config, parser)
