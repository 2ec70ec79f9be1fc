"""`config.pbtxt`: written from the specification's records, so that nobody writes one by hand, and read again.

The writing is checked against Triton's own protobuf schema in the tests, and the committed repository against it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ensemble import interfaces
from ensemble.records import Axis, ModelSpec, TensorSpec
from ensemble.spec import RESOLUTIONS, Variant, find_engine
from ensemble.video.variant import VideoVariant

_TYPES = {"BYTES": "TYPE_STRING"}
_PARAMETER = re.compile(r'key: "(\w+)", value: { string_value: ("(?:[^"\\]|\\.)*")')
_BACKEND = re.compile(r'^backend: "(\w+)"', re.MULTILINE)


Fronts = Mapping[str, tuple[Variant, Mapping[str, str]]]
"""Name of a front model -> its variant, and the engine of each of its sub-models by part."""


Videos = Mapping[str, tuple[VideoVariant, Mapping[str, str], int]]
"""Name of a video front model -> its variant, the engine of each of its sub-models by part, and its slots."""
NO_VIDEOS: Videos = MappingProxyType({})
MAX_SEQUENCES = 1024
"""Sessions of one instance of a video front model that Triton knows. Beyond them a start waits without a word, so the
model refuses much earlier, for lack of slots."""
SEQUENCE_IDLE_US = 120_000_000
"""Triton forgets a sequence then, without telling the model, whose memory others could have long before
(`video/sessions.py`)."""
_SEQUENCES = """sequence_batching {{
  max_sequence_idle_microseconds: {idle}
  oldest {{ max_candidate_sequences: {most}, max_queue_delay_microseconds: {delay} }}
  control_input [
    {{ name: "START", control [ {{ kind: CONTROL_SEQUENCE_START, int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "END", control [ {{ kind: CONTROL_SEQUENCE_END, int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "CORRID", control [ {{ kind: CONTROL_SEQUENCE_CORRID, data_type: TYPE_UINT64 }} ] }}
  ]
}}"""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What this project reads of a `config.pbtxt` that it has written."""

    backend: str = ""
    on_gpu: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> ModelConfig:
    """The configuration in that file; an empty one where there is no file."""
    if not path.is_file():
        return ModelConfig()
    text = path.read_text()
    backend = _BACKEND.search(text)
    return ModelConfig(
        backend=backend[1] if backend else "",
        on_gpu="kind: KIND_GPU" in text,
        parameters={key: json.loads(value) for key, value in _PARAMETER.findall(text)},
    )


def write(model: ModelSpec, variant: Variant, engine: str, repository: Path, engine_model: bool = False) -> Path:
    """Writes `config.pbtxt`, and `1/model.py` where the python backend needs one, below `repository`; returns the
    model's folder. Of a front model: `engine_model` says that the engine model runs its sub-models, not Triton.
    """
    script = "ensemble.front" if model.part == "front" else "ensemble.sub_model"
    native = model.part != "front" and find_engine(engine).backend != "python"
    text = render(model, variant, engine, engine_model)
    return _write(repository / model.name, text, None if native else script)


def write_engine(
    fronts: Fronts,
    gpus: Sequence[int],
    repository: Path,
    gpu_memory_mb: float | None = None,
    videos: Videos = NO_VIDEOS,
) -> Path:
    """Writes the engine model for these front models. One instance on each of `gpus`, or one on the CPU where there are
    none; `gpu_memory_mb` is what the server may take of each. Returns the model's folder."""
    text = render_engine(fronts, gpus, gpu_memory_mb, videos)
    return _write(repository / interfaces.ENGINE_MODEL, text, "ensemble.engine")


def write_direct(
    variant: Variant,
    engines: Mapping[str, str],
    gpus: Sequence[int],
    repository: Path,
    gpu_memory_mb: float | None = None,
) -> Path:
    """Writes the engine model of one variant that clients call themselves, under the front model's name; otherwise as
    `write_engine`."""
    parameters = _engine_parameters({variant.front_name: (variant, engines)}, gpu_memory_mb)
    parameters["variant"] = json.dumps(variant.to_dict(), separators=(",", ":"))
    batching = [f"dynamic_batching {{ max_queue_delay_microseconds: {variant.queue_delay_us} }}"]
    text = _render(variant.front, "python", _place(gpus), parameters, batching)
    return _write(repository / variant.front_name, text, "ensemble.direct")


def render(model: ModelSpec, variant: Variant, engine: str, engine_model: bool = False) -> str:
    """The `config.pbtxt` of `model` when `engine` (one of `spec.ENGINES`) runs the sub-models. Raises ValueError on an
    unknown engine."""
    spec = find_engine(engine)
    if model.part == "front":
        parameters = {"preprocess": spec.preprocess, "variant": json.dumps(variant.to_dict(), separators=(",", ":"))}
        if engine_model:
            parameters["engine_model"] = interfaces.ENGINE_MODEL
        batching = [f"dynamic_batching {{ max_queue_delay_microseconds: {variant.queue_delay_us} }}"]
        return _render(model, "python", f"kind: KIND_CPU, count: {variant.front_instances}", parameters, batching)
    # Left to itself Triton puts an instance on every GPU, and features would travel between them.
    place = "kind: KIND_GPU, gpus: [ 0 ], count: 1" if spec.on_gpu else "kind: KIND_CPU, count: 1"
    if spec.backend != "python":
        return _render(model, spec.backend, place, {}, [f'default_model_filename: "{spec.artifact}"'])
    # Without the second the python backend copies every GPU input to the host before it is seen.
    return _render(model, "python", place, {"engine": spec.name, "FORCE_CPU_ONLY_INPUT_TENSORS": "no"})


def render_engine(
    fronts: Fronts, gpus: Sequence[int], gpu_memory_mb: float | None = None, videos: Videos = NO_VIDEOS
) -> str:
    """The `config.pbtxt` of the engine model; see `write_engine`."""
    return _render(interfaces.engine(), "python", _place(gpus), _engine_parameters(fronts, gpu_memory_mb, videos))


def write_video(variant: VideoVariant, engine: str, repository: Path) -> Path:
    """Writes a video front model, whose sub-models the engine model runs; returns its folder."""
    parameters = {
        "preprocess": find_engine(engine).preprocess,
        "video": json.dumps(variant.to_dict(), separators=(",", ":")),
        "engine_model": interfaces.ENGINE_MODEL,
    }
    place = f"kind: KIND_CPU, count: {variant.detector.front_instances}"
    sequences = _SEQUENCES.format(idle=SEQUENCE_IDLE_US, most=MAX_SEQUENCES, delay=variant.detector.queue_delay_us)
    text = _render(variant.front, "python", place, parameters, sequences.splitlines())
    return _write(repository / variant.front_name, text, "ensemble.video.front")


def _place(gpus: Sequence[int]) -> str:
    return f"kind: KIND_GPU, gpus: [ {', '.join(map(str, gpus))} ], count: 1" if gpus else "kind: KIND_CPU, count: 1"


def _engine_parameters(fronts: Fronts, gpu_memory_mb: float | None, videos: Videos = NO_VIDEOS) -> dict[str, str]:
    told: dict[str, Any] = {
        name: {"variant": variant.to_dict(), "engines": dict(engines)} for name, (variant, engines) in fronts.items()
    }
    for name, (video, engines, slots) in videos.items():
        own = {"variant": video.to_dict(), "slots": slots}
        told[name] = {"variant": video.detector.to_dict(), "engines": dict(engines), "video": own}
    modes = {find_engine(engines["vision_encoder"]).preprocess for _, engines in fronts.values()}
    parameters = {
        "fronts": json.dumps(told, separators=(",", ":")),
        "preprocess": modes.pop() if len(modes) == 1 else "cpu",
    }
    if gpu_memory_mb is not None:
        parameters["gpu_memory_mb"] = str(gpu_memory_mb)
    return parameters


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


def _write(folder: Path, text: str, module: str | None) -> Path:
    """`module` holds the class that the python backend runs; None for a model of another backend."""
    script = folder / "1" / "model.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text)
    if module is None:
        script.unlink(missing_ok=True)  # of another engine, before
    else:
        script.write_text(f'from {module} import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n')
    return folder


def _render(model: ModelSpec, backend: str, place: str, parameters: Mapping[str, str], more: Sequence[str] = ()) -> str:
    lines = [
        "# Generated from ensemble/spec.py; `python -m ensemble.pbtxt` writes the committed ones again.",
        f'name: "{model.name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {model.max_batch_size}",
        *_tensors("input", model.inputs, model),
        *_tensors("output", model.outputs, model),
        f"instance_group [{{ {place} }}]",
        *more,
        *(f'parameters {{ key: "{k}", value: {{ string_value: {json.dumps(v)} }} }}' for k, v in parameters.items()),
    ]
    return "\n".join(lines) + "\n"


def _tensors(kind: str, tensors: tuple[TensorSpec, ...], model: ModelSpec) -> Iterator[str]:
    yield f"{kind} ["
    for i, tensor in enumerate(tensors):
        dims = tensor.dims[1:] if model.batch_axis else tensor.dims
        sizes = ", ".join("-1" if isinstance(d, Axis) else str(d) for d in dims)
        flags = ", optional: true" if tensor.optional else ""
        flags += ", allow_ragged_batch: true" if model.ragged and kind == "input" else ""
        comma = "," if i + 1 < len(tensors) else ""
        dtype = _TYPES.get(tensor.dtype, f"TYPE_{tensor.dtype}")
        yield f'  {{ name: "{tensor.name}", data_type: {dtype}, dims: [ {sizes} ]{flags} }}{comma}'
    yield "]"


if __name__ == "__main__":
    raise SystemExit(main())
