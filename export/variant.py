"""A loaded checkpoint and a variant in, that variant's part of a Triton model repository out: five verified sub-models
and the front's configuration.

Every artifact is built beside the repository, measured by the gate, and moved in only when all of a variant's artifacts
passed. What has not changed since the last run is kept.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Sam3Model

from ensemble.spec import ENGINES, Variant
from export.checkpoint import RANDOM, Source, at_size
from export.engines.registry import Engine, Report
from export.engines.registry import engine as find_engine
from export.engines.tensorrt.host import TensorRT
from export.gate.frames import Frame, gate_samples
from export.gate.locate import LAYERS, first_layer_off
from export.gate.reference import Sample, all_expected_outputs, reference_device
from export.gate.verify import GateReport, verify
from export.manifest import manifest, recipe, torch_precision
from export.repository import VERSION, Written, is_current, publish, write_configurations
from export.sub_models.parts import PARTS, STYLES, make_part

Facts = dict[str, Any]
"""What is known about a build; see `_build`."""


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

    Artifacts whose manifest still tells the truth are kept unless `force`; if any has to be built, all five pass the
    gate together. `report` hears of each step, `detail` what an engine says while it builds. With `locate` a failure of
    the gate names the first layer that is off. Artifacts wait for the gate in the folder `staging` (default: beside the
    repository), where the next export takes up what an interrupted one had built and, after a failure, what was not at
    fault. Raises EngineError before anything is built, GateError before anything is moved in.
    """
    tool = find_engine(engine, tensorrt)
    names = {part: getattr(variant, part).name for part in PARTS}
    recipes = {part: recipe(source, variant, engine, part, tool) for part in PARTS}
    kept = {part for part in PARTS if not force and is_current(root / names[part], recipes[part])}
    if len(kept) < len(PARTS):
        staging = (
            staging or root.parent
        ) / f".{root.name}.{variant.front_name}"  # outside: a server may be watching the repository
        staging.parent.mkdir(parents=True, exist_ok=True)
        sized = at_size(source.model, variant.resolution, variant.queries)

        def build(part: str) -> Facts:
            report(f"{names[part]}: building {ENGINES[engine].artifact}")
            return _build(tool, sized, variant, engine, part, staging, recipes[part], force, detail)

        missing = [part for part in PARTS if part not in kept]
        built = dict(zip(missing, built_all(build, missing, tool.side_by_side), strict=True))
        paths = {
            part: (root if part in kept else staging) / names[part] / VERSION / ENGINES[engine].artifact
            for part in PARTS
        }
        gate = measured(tool, paths, source, sized, variant, frames, report, engine if locate else None)
        if gate.failures:
            discard(staging, [names[part] for part in missing], gate)
            gate.raise_for_failures()
        for part, facts in built.items():
            told = manifest(source, variant, engine, part, recipes[part], tool, facts, gate)
            publish(staging / names[part], root / names[part], told)
        shutil.rmtree(staging)
    report(f"r{variant.resolution}: writing configurations")
    write_configurations(variant, engine, root)
    source.tokenizer.save(str(root / variant.text_encoder.name / VERSION / "tokenizer.json"))
    return [Written.at(root / names[part], part in kept) for part in PARTS]


def discard(staging: Path, built: Sequence[str], gate: GateReport) -> None:
    """Removes the staged models that the gate found fault with; all of them where it blames none by name."""
    blamed = [name for name in built if any(failure.startswith(f"{name}:") for failure in gate.failures)]
    for name in blamed or built:
        shutil.rmtree(staging / name)
    if not any(staging.iterdir()):
        staging.rmdir()


def measured(
    tool: Engine,
    paths: Mapping[str, Path],
    source: Source,
    sized: Sam3Model,
    variant: Variant,
    frames: Sequence[Frame],
    report: Report,
    locate: str | None,
) -> GateReport:
    """How near the artifacts at `paths` (by part) come to `Sam3Model` on the frames. With `locate`, the engine's name,
    failures name the first layer that is off. Raises GateError where an answer has another shape than the
    reference's."""
    report(f"r{variant.resolution}: asking Sam3Model about {len(frames)} frames")
    samples = gate_samples(frames, source.tokenizer, variant)
    truths = all_expected_outputs(sized, samples, reference_device())
    report(f"r{variant.resolution}: measuring the artifacts against it")
    with ExitStack() as opened:
        runs = {}
        for part, path in paths.items():
            runs[part] = tool.open(path)
            opened.callback(getattr(runs[part], "close", lambda: None))
        gate = verify(runs, variant, samples, truths, detects=source.name != RANDOM)
    return (
        replace(gate, failures=gate.failures + _places(tool, locate, sized, variant, samples[0], gate, report))
        if locate
        else gate
    )


def built_all(build: Callable[[str], Facts], parts: Sequence[str], side_by_side: bool) -> list[Facts]:
    """`build` of each part, in order. One after another they stay in this thread: `torch.export` crashes the process in
    a second one (2.11)."""
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
) -> Facts:
    """Builds one artifact into `staging`, unless an interrupted export left it there; what the manifest will say about
    that."""
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
    plan = tool.build(module, model, variant, folder / VERSION / ENGINES[engine].artifact, detail)
    facts = {"recipe": recipe, "build_seconds": round(time.perf_counter() - start, 2), "build": dict(plan)}
    note.write_text(json.dumps(facts))
    return facts


def _places(
    tool: Engine, engine: str, sized: Sam3Model, variant: Variant, sample: Sample, gate: GateReport, report: Report
) -> tuple[str, ...]:
    """A sentence for each failed sub-model that `export/gate/locate.py` can look into."""
    feeds = {"vision_encoder": {"pixel_values": sample.pixel_values}, "text_encoder": {"input_ids": sample.input_ids}}
    failed = [part for part in LAYERS if any(f.startswith(f"{getattr(variant, part).name}:") for f in gate.failures)]
    return tuple(first_layer_off(tool, engine, sized, variant, part, feeds[part], report) for part in failed)
