"""Model records in, the text of `config.pbtxt` and of the python backend's `model.py` out, so that no configuration is
written by hand.

The rendering is checked against Triton's own protobuf schema in the tests, and the committed repository against this
rendering.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ensemble.records import Axis, ModelSpec, TensorSpec
from ensemble.spec import RESOLUTIONS, EngineSpec, Variant, find_engine

_TYPES = {"BYTES": "TYPE_STRING"}


def render(model: ModelSpec, variant: Variant, engine: str) -> str:
    """The `config.pbtxt` of `model` when `engine` (one of `spec.ENGINES`) runs the sub-models. Raises ValueError on an
    unknown engine."""
    return "\n".join(_lines(model, variant, find_engine(engine))) + "\n"


def model_py(part: str, engine: str) -> str | None:
    """The text of `1/model.py`: the front model and every engine without a Triton backend of its own need one; None
    where there is none."""
    if part == "front":
        return 'from ensemble.front import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'
    if find_engine(engine).backend != "python":
        return None
    return 'from ensemble.engine import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'


def write(model: ModelSpec, variant: Variant, engine: str, repository: Path) -> Path:
    """Writes `config.pbtxt`, and `1/model.py` where there is one, below `repository`; returns the model's folder."""
    folder = repository / model.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(render(model, variant, engine))
    script = model_py(model.part, engine)
    if script is None:
        (folder / "1" / "model.py").unlink(missing_ok=True)  # of another engine, before
    else:
        (folder / "1" / "model.py").write_text(script)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the configurations of the committed repository: every real resolution, TensorRT plans, artifacts left to
    sam3-export."""
    parser = argparse.ArgumentParser(prog="python -m ensemble.pbtxt", description=main.__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    options = parser.parse_args(argv)
    names = set()
    for variant in (Variant(resolution=resolution) for resolution in RESOLUTIONS):
        for model in (*variant.sub_models, variant.front):
            names.add(write(model, variant, "tensorrt", options.repository).name)
    print(json.dumps({"repository": str(options.repository), "models": sorted(names)}))
    return 0


def _lines(model: ModelSpec, variant: Variant, engine: EngineSpec) -> Iterator[str]:
    front = model.part == "front"
    yield "# Generated from ensemble/spec.py; `python -m ensemble.pbtxt` writes the committed ones again."
    yield f'name: "{model.name}"'
    native = not front and engine.backend != "python"
    yield f'backend: "{engine.backend if native else "python"}"'
    if native:
        yield f'default_model_filename: "{engine.artifact}"'
    yield f"max_batch_size: {model.max_batch_size}"
    yield from _tensors("input", model.inputs, model)
    yield from _tensors("output", model.outputs, model)
    # Left to itself Triton puts an instance on every GPU, and features would travel between them: a second GPU gets a
    # server of its own.
    place = "KIND_GPU, gpus: [ 0 ]" if engine.on_gpu and not front else "KIND_CPU"
    yield f"instance_group [{{ kind: {place}, count: {variant.front_instances if front else 1} }}]"
    if front:
        yield f"dynamic_batching {{ max_queue_delay_microseconds: {variant.queue_delay_us} }}"
        yield from _parameter("preprocess", engine.preprocess)
        yield from _parameter("variant", json.dumps(variant.to_dict(), separators=(",", ":")))
    elif not native:
        yield from _parameter("engine", engine.name)
        # Without this the python backend copies every GPU input to the host before the runner sees it.
        yield from _parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no")


def _tensors(kind: str, tensors: tuple[TensorSpec, ...], model: ModelSpec) -> Iterator[str]:
    yield f"{kind} ["
    for i, tensor in enumerate(tensors):
        dims = tensor.dims[1:] if model.batch_axis else tensor.dims
        sizes = ", ".join("-1" if isinstance(d, Axis) else str(d) for d in dims)
        flags = ", optional: true" if tensor.optional else ""
        flags += ", allow_ragged_batch: true" if model.ragged and kind == "input" else ""
        comma = "," if i + 1 < len(tensors) else ""
        yield (
            f'  {{ name: "{tensor.name}", data_type: {_TYPES.get(tensor.dtype, f"TYPE_{tensor.dtype}")}, dims: ['
            f" {sizes} ]{flags} }}{comma}"
        )
    yield "]"


def _parameter(key: str, value: str) -> Iterator[str]:
    yield f'parameters {{ key: "{key}", value: {{ string_value: {json.dumps(value)} }} }}'


if __name__ == "__main__":
    raise SystemExit(main())
