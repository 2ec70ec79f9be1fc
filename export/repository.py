"""A loaded checkpoint and a variant in, a Triton model repository out: a folder for each model with its configuration, artifact and manifest.

Every artifact is built beside the repository, measured by the gate, and moved in only when all of a variant's artifacts passed. A manifest says what an
artifact was made from, so that the next run keeps what has not changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import Sam3Model

from ensemble import pbtxt
from ensemble.spec import ARTIFACTS, Variant
from export.checkpoint import RANDOM, Source, at_size
from export.engines import Engine, Report
from export.engines import engine as find_engine
from export.frames import Frame, gate_samples
from export.locate import LAYERS, first_layer_off
from export.onnx_graph import OPSET
from export.parts import PARTS, STYLES, make_part
from export.reference import Sample, all_expected_outputs, reference_device
from export.tensorrt_host import TensorRT
from export.verify import GateError, GateReport, verify

MANIFEST = "manifest.json"
VERSION = "1"
"""Triton's version folder."""
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")
SHARED_CODE = ("attention", "positions", "precision", "parts", "onnx_graph")
ENGINE_CODE = {"tensorrt": ("tensorrt_plan", "tensorrt_network", "onnx_legacy"), "aoti": ("aoti_package",), "onnxruntime": ()}
"""Modules of this folder whose change makes artifacts stale, beside a part's own."""


Facts = dict[str, Any]
"""What is known about a build; see `_build`."""


@dataclass(frozen=True, slots=True)
class Written:
    """One artifact of the repository, for the table and the JSON line."""

    model: str
    artifact: str
    megabytes: float
    state: str  # "built" or "kept"
    seconds: float  # that building took, now or then
    cosine: float  # least of its outputs
    relative_error: float  # largest of its outputs


def export_variant(
    source: Source,
    variant: Variant,
    engine: str,
    root: Path,
    frames: Sequence[Frame],
    report: Report = lambda step: None,
    force: bool = False,
    tensorrt: TensorRT | None = None,
    detail: Report = lambda line: None,
    locate: bool = False,
    staging: Path | None = None,
) -> list[Written]:
    """Writes `variant` for `engine` into the repository at `root` and returns what is there now.

    Artifacts whose manifest still tells the truth are kept unless `force`; if any has to be built, all five pass the gate together. `report` hears
    of each step, `detail` what an engine says while it builds. With `locate` a failure of the gate names the first layer that is off. Artifacts wait for the gate in the folder `staging`
    (default: beside the repository), where the next export takes up what an interrupted one had built.
    Raises EngineError before anything is built, GateError before anything is moved in.
    """
    tool = find_engine(engine, tensorrt)
    recipes = {part: recipe(source, variant, engine, part, tool) for part in PARTS}
    kept = {part for part in PARTS if not force and is_current(root / getattr(variant, part).name, recipes[part])}
    if len(kept) < len(PARTS):
        staging = (
            staging or root.parent
        ) / f".{root.name}.{variant.front_name}"  # outside: a server may be watching the repository
        staging.parent.mkdir(parents=True, exist_ok=True)
        sized = at_size(source.model, variant.resolution, variant.queries)

        def build(part: str) -> dict[str, Any]:
            report(f"{getattr(variant, part).name}: building {ARTIFACTS[engine]}")
            return _build(tool, sized, variant, engine, part, staging, recipes[part], force, detail)

        missing = [part for part in PARTS if part not in kept]
        built = dict(zip(missing, built_all(build, missing, tool.side_by_side), strict=True))
        report(f"r{variant.resolution}: asking Sam3Model about {len(frames)} frames")
        samples = gate_samples(frames, source.tokenizer, variant)
        truths = all_expected_outputs(sized, samples, reference_device())
        report(f"r{variant.resolution}: measuring the artifacts against it")
        try:
            with ExitStack() as opened:
                runs = {}
                for part in PARTS:
                    path = (root if part in kept else staging) / getattr(variant, part).name / VERSION / ARTIFACTS[engine]
                    runs[part] = tool.open(path)
                    opened.callback(getattr(runs[part], "close", lambda: None))
                gate = verify(runs, variant, samples, truths, detects=source.name != RANDOM)
            if locate:
                gate = replace(gate, failures=gate.failures + _places(tool, engine, sized, variant, samples[0], gate, report))
            gate.raise_for_failures()
        except GateError:
            shutil.rmtree(staging)
            raise
        for part, facts in built.items():
            name = getattr(variant, part).name
            _publish(staging / name, root / name, manifest(source, variant, engine, part, recipes[part], tool, facts, gate))
        shutil.rmtree(staging)
    report(f"r{variant.resolution}: writing configurations")
    write_configurations(variant, engine, root)
    source.tokenizer.save(str(root / variant.text_encoder.name / VERSION / "tokenizer.json"))
    return [_written(root / getattr(variant, part).name, part in kept) for part in PARTS]


def built_all(build: Callable[[str], Facts], parts: Sequence[str], side_by_side: bool) -> list[Facts]:
    """`build` of each part, in order. One after another they stay in this thread: `torch.export` crashes the process in a second one (2.11)."""
    if not side_by_side:
        return [build(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(build, parts))


def _build(
    tool: Engine,
    sized: Sam3Model,
    variant: Variant,
    engine: str,
    part: str,
    staging: Path,
    recipe: str,
    force: bool,
    detail: Report,
) -> dict[str, Any]:
    """Builds one artifact into `staging`, unless an interrupted export left it there; what the manifest will say about that."""
    model = getattr(variant, part)
    folder = staging / model.name
    note = folder / "built.json"
    if note.is_file() and not force:
        facts = json.loads(note.read_text())
        if facts["recipe"] == recipe:
            return facts
    shutil.rmtree(folder, ignore_errors=True)
    (folder / VERSION).mkdir(parents=True)
    start = time.perf_counter()
    module = make_part(part, sized, STYLES[engine], torch_precision(variant))
    plan = tool.build(module, model, variant, folder / VERSION / ARTIFACTS[engine], detail)
    facts = {"recipe": recipe, "build_seconds": round(time.perf_counter() - start, 2), "build": dict(plan)}
    note.write_text(json.dumps(facts))
    return facts


def _places(
    tool: Engine, engine: str, sized: Sam3Model, variant: Variant, sample: Sample, gate: GateReport, report: Report
) -> tuple[str, ...]:
    """A sentence for each failed sub-model that `export/locate.py` can look into."""
    feeds = {"vision_encoder": {"pixel_values": sample.pixel_values}, "text_encoder": {"input_ids": sample.input_ids}}
    failed = [part for part in LAYERS if any(f.startswith(f"{getattr(variant, part).name}:") for f in gate.failures)]
    return tuple(first_layer_off(tool, engine, sized, variant, part, feeds[part], report) for part in failed)


def torch_precision(variant: Variant) -> str:
    """Precision of the torch modules: int8 and fp8 are quantised by the engine, from fp16."""
    return "fp32" if variant.precision == "fp32" else "fp16"


def write_configurations(variant: Variant, engine: str, root: Path) -> list[Path]:
    """Writes `config.pbtxt` (and `1/model.py` where the python backend runs the model) of the five sub-models and the front; needs no checkpoint."""
    written = []
    for model in (*variant.sub_models, variant.front):
        folder = root / model.name
        (folder / VERSION).mkdir(parents=True, exist_ok=True)
        texts = {
            folder / "config.pbtxt": pbtxt.render(model, variant, engine),
            folder / VERSION / "model.py": pbtxt.model_py(model.part, engine),
        }
        for path, text in texts.items():
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text)
                written.append(path)
    return written


# ---- manifests
def recipe(source: Source, variant: Variant, engine: str, part: str, tool: Engine) -> str:
    """Hash of everything that one artifact is made from: weights, record, precision, engine, what it is built for, library versions and the code that
    makes graphs."""
    model = getattr(variant, part)
    paths = [Path(__file__).with_name(f"{name}.py") for name in (part, *SHARED_CODE, *ENGINE_CODE[engine])]
    if STYLES[engine].kernels:
        paths += sorted(Path(__file__).parent.glob("fused_*.py")) + sorted((Path(__file__).parent / "kernels").glob("*.py"))
    code = [file_sha256(path) for path in paths if path.is_file()]
    facts = [
        source.sha256,
        asdict(model),
        torch_precision(variant),
        variant.precision,
        engine,
        asdict(STYLES[engine]),
        dict(tool.built_for),
        dict(tool.settings),
        OPSET,
        versions(),
        code,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of the libraries that an artifact depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ImportError:
            continue
    return found


def is_current(folder: Path, recipe: str) -> bool:
    """Whether the folder's manifest names this recipe and its files are the ones that the manifest names."""
    try:
        data = json.loads((folder / MANIFEST).read_text())
        return data["recipe"] == recipe and all(
            file_sha256(folder / VERSION / name) == digest for name, digest in data["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def manifest(
    source: Source,
    variant: Variant,
    engine: str,
    part: str,
    recipe: str,
    tool: Engine,
    facts: Mapping[str, Any],
    gate: GateReport,
) -> dict[str, Any]:
    """What is known about one artifact, for people and for the next run. `_publish` adds the files' hashes."""
    model = getattr(variant, part)
    return {
        "model": model.name,
        "engine": engine,
        "artifact": ARTIFACTS[engine],
        "precision": variant.precision,
        "checkpoint": {"name": source.name, "sha256": source.sha256},
        "recipe": recipe,
        "built_for": dict(tool.built_for),
        "versions": versions(),
        "build_seconds": facts["build_seconds"],
        "build": facts["build"],
        "gate": {
            "outputs": {
                c.output: {"cosine": c.cosine, "relative_error": c.relative} for c in gate.outputs if c.model == model.name
            },
            "detections": asdict(gate.detections),
        },
    }


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _publish(staged: Path, folder: Path, data: dict[str, Any]) -> None:
    """Moves the staged files into the model's folder; the manifest comes last, so a folder is never current before it is whole."""
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for path in sorted((staged / VERSION).iterdir()):
        files[path.name] = file_sha256(path)
        shutil.move(path, folder / VERSION / path.name)  # a rename, or a copy where the repository is a mount of its own
    size = sum((folder / VERSION / name).stat().st_size for name in files)
    (folder / MANIFEST).write_text(json.dumps({**data, "bytes": size, "files": files}, indent=2) + "\n")


def _written(folder: Path, kept: bool) -> Written:
    data = json.loads((folder / MANIFEST).read_text())
    outputs = data["gate"]["outputs"].values()
    return Written(
        model=data["model"],
        artifact=f"{folder.name}/{VERSION}/{data['artifact']}",
        megabytes=round(data["bytes"] / 1e6, 1),
        state="kept" if kept else "built",
        seconds=data["build_seconds"],
        cosine=min(o["cosine"] for o in outputs),
        relative_error=max(o["relative_error"] for o in outputs),
    )
