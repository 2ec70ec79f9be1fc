"""Exports one variant of a loaded checkpoint: five verified sub-models and the configurations of a Triton repository.

Every artifact is built beside the repository, measured by the gate, and moved in only when all of a variant's artifacts
passed. What has not changed since the last run is kept.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import Sam3Model

from ensemble.gate.limits import part_precision
from ensemble.records import NUMPY_DTYPES, ModelSpec
from ensemble.spec import Variant
from export.checkpoint import RANDOM, Source, at_size
from export.engines.engine import Tool
from export.engines.registry import ready
from export.engines.tensorrt.settings import TensorRT
from export.gate.frames import Frame, gate_samples
from export.gate.locate import LAYERS, first_layer_off
from export.gate.reference import Sample, all_expected_outputs, reference_device, scores
from export.gate.truths import store_truths, truths_hash
from export.gate.verify import GateReport, feeds_of, strongest, verify
from export.manifest import manifest, recipe
from export.repository import VERSION, Written, is_current, publish, write_configurations
from export.slim.calibration import FILE as CALIBRATION
from export.slim.calibration import Calibration, digest, drawn_pixels
from export.slim.fp8 import calibrate
from export.sub_models.parts import PARTS, make_part
from export.sub_models.precision import torch_precision

log = logging.getLogger(__name__)

Facts = dict[str, Any]
"""What is known about a build; see `build_part`."""
Progress = Callable[[str], None]
"""Called with each step of an export as it begins, for a progress bar."""


@dataclass(frozen=True)
class Job:
    """One export: `variant` of `source` for `engine`, into the repository at `root`, verified on `frames`.

    `force` builds even what is current. With `locate`, failures of the gate name the first layer that is off. Artifacts
    wait for the gate in the folder `staging` (default: the one that the repository is in). fp8 is calibrated on the
    pixels `calibration`, uint8 [3,R,R] each; without any, on drawn scenes, unless the repository has a calibration.
    """

    source: Source
    variant: Variant
    engine: str
    root: Path
    frames: Sequence[Frame]
    force: bool = False
    locate: bool = False
    staging: Path | None = None
    calibration: Sequence[np.ndarray] = ()
    tensorrt: TensorRT = field(default_factory=TensorRT)

    @property
    def staged(self) -> Path:
        """Where this variant's artifacts wait: outside the repository, which a server may be watching."""
        return (self.staging or self.root.parent) / f".{self.root.name}.{self.variant.front_name}"


def export_variant(job: Job, progress: Progress = lambda step: None) -> list[Written]:
    """Writes the variant into the repository and returns what is there now.

    Artifacts whose manifest is still true are kept; if any has to be built, all five pass the gate together. The next
    export of the same variant goes on with what an interrupted one had built and, after a failure, with what was not at
    fault. Raises EngineError before anything is built, GateError before anything is moved in.
    """
    source, variant, root = job.source, job.variant, job.root
    tool = ready(job.engine, job.tensorrt, variant.precision)
    calibration = calibrated(job, progress) if variant.precision == "fp8" else None
    seen = calibration.text() if calibration else truths_hash(source, variant, job.frames)
    names = {part: getattr(variant, part).name for part in PARTS}
    recipes = {part: recipe(source, variant, part, tool, calibration=seen) for part in PARTS}
    kept = {part for part in PARTS if not job.force and is_current(root / names[part], recipes[part])}
    if len(kept) < len(PARTS):
        job.staged.parent.mkdir(parents=True, exist_ok=True)
        sized = at_size(source.model, variant.resolution, variant.queries)

        def build(part: str) -> Facts:
            progress(f"{names[part]}: building {tool.engine.spec.artifact}")
            return build_part(job, tool, sized, part, recipes[part], calibration)

        missing = [part for part in PARTS if part not in kept]
        built = dict(zip(missing, built_all(build, missing, tool.engine.side_by_side), strict=True))
        folders = {part: (root if part in kept else job.staged) / names[part] / VERSION for part in PARTS}
        gate = measured(job, {part: (tool, folder) for part, folder in folders.items()}, sized, progress)
        if gate is None:
            log.warning("%s: built, but this machine cannot run it: the gate has not seen it", variant.front_name)
        elif gate.failures:
            discard(job.staged, [names[part] for part in missing], gate)
            gate.raise_for_failures()
        for part, facts in built.items():
            known = manifest(source, variant, part, recipes[part], tool, facts, gate)
            publish(job.staged / names[part], root / names[part], known)
        shutil.rmtree(job.staged)
    progress(f"r{variant.resolution}: storing what Sam3Model answers, to measure by where this is served")
    store_truths(source, variant, job.frames, root / variant.front_name, job.force)
    progress(f"r{variant.resolution}: writing configurations")
    write_configurations(variant, job.engine, root)
    source.tokenizer.save(str(root / variant.text_encoder.name / VERSION / "tokenizer.json"))
    written = [Written.at(root / names[part], part in kept) for part in PARTS]
    return [*written, export_text_encoder_cpu(job, tool, progress)] if tool.engine.spec.shares_gpu else written


def export_text_encoder_cpu(job: Job, tool: Tool, progress: Progress) -> Written:
    """The text encoder once more, for the CPU (`Variant.text_encoder_cpu`), which servers with little GPU memory take.
    It passes the gate beside the other artifacts, which are in the repository. Raises what `export_variant` raises."""
    source, root, name = job.source, job.root, job.variant.text_encoder_cpu.name
    own = replace(job, variant=replace(job.variant, precision="fp32"), engine="onnxruntime")
    runner = ready(own.engine)
    made_from = recipe(source, own.variant, "text_encoder", runner)
    kept = not job.force and is_current(root / name, made_from)
    if not kept:
        progress(f"{name}: building {runner.engine.spec.artifact}")
        sized = at_size(source.model, job.variant.resolution, job.variant.queries)
        facts = build_part(own, runner, sized, "text_encoder", made_from)
        staged = own.staged / own.variant.text_encoder.name
        artifacts = {part: (tool, root / getattr(job.variant, part).name / VERSION) for part in PARTS}
        gate = measured(job, {**artifacts, "text_encoder": (runner, staged / VERSION)}, sized, progress)
        if gate:
            gate.raise_for_failures()
        known = manifest(source, own.variant, "text_encoder", made_from, runner, facts, gate)
        publish(staged, root / name, {**known, "model": name})
        shutil.rmtree(own.staged)
    return Written.at(root / name, kept)


def calibrated(job: Job, progress: Progress) -> Calibration:
    """The variant's calibration in fp8: that of an earlier export if checkpoint and frames are still the same, else a
    new one, which waits where the artifacts do. Raises ValueError where an earlier one cannot be read."""
    variant, checkpoint = job.variant, job.source.part_sha256("vision_encoder")
    wanted = digest(job.calibration) if job.calibration else None
    staged = job.staged / CALIBRATION
    for place in (staged, job.root / variant.vision_encoder.name / VERSION / CALIBRATION):
        found = None if job.force else Calibration.read(place)
        if found and found.checkpoint == checkpoint and wanted in (None, found.frames):
            return found
    if not job.calibration and job.source.name != RANDOM:
        log.warning(
            "fp8 is calibrated on drawn scenes; frames of your own show what your cameras do: --calibration-frames"
        )
    frames = job.calibration or drawn_pixels(variant.resolution)
    progress(f"r{variant.resolution}: calibrating fp8 on {len(frames)} frames")
    sized = at_size(job.source.model, variant.resolution, variant.queries)
    found = calibrate(sized, checkpoint, frames, reference_device())
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_text(found.text())
    return found


def built_all(build: Callable[[str], Facts], parts: Sequence[str], side_by_side: bool) -> list[Facts]:
    """`build` of each part, in order. One after another they stay in this thread: `torch.export` crashes the process in
    a second one (2.11)."""
    if not side_by_side:
        return [build(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(build, parts))


def build_part(
    job: Job, tool: Tool, sized: Sam3Model, part: str, recipe: str, calibration: Calibration | None = None
) -> Facts:
    """`staged_build` of one of the five sub-models; in fp8 the calibration lies beside the artifact."""
    model = getattr(job.variant, part)

    def make() -> tuple[nn.Module, Facts]:
        hidden = job.variant.tracker is not None
        module = make_part(part, sized, tool.engine.style, torch_precision(job.variant), hidden)
        if part_precision(job.variant, part) == "int8":
            assert tool.engine.in_int8 is not None, "an engine that makes int8 says how"
            return tool.engine.in_int8(module, int8_feeds(job, sized, part)), {}
        if not calibration or part_precision(job.variant, part) != "fp8":
            return module, {}
        assert tool.engine.in_fp8 is not None, "an engine that makes fp8 says how"
        (job.staged / model.name / VERSION / CALIBRATION).write_text(calibration.text())
        return tool.engine.in_fp8(module, calibration), {"calibration": calibration.summary()}

    return staged_build(job, tool, model, recipe, make)


def int8_feeds(job: Job, sized: Sam3Model, part: str) -> list[Mapping[str, np.ndarray]]:
    """Inputs of a sub-model, of the job's frames and words, by which int8 leaves layers out."""
    samples = gate_samples(job.frames, job.source.tokenizer, job.variant)
    truths = all_expected_outputs(sized, samples, reference_device())
    feeds: list[Mapping[str, np.ndarray]] = []
    for sample, truth in zip(samples, truths, strict=True):
        feed = feeds_of(sample, truth, strongest(scores(truth), job.variant.max_picks))[part]
        feeds.append(
            {t.name: np.asarray(feed[t.name], NUMPY_DTYPES[t.dtype]) for t in getattr(job.variant, part).inputs}
        )
    return feeds


def staged_build(
    job: Job, tool: Tool, model: ModelSpec, recipe: str, make: Callable[[], tuple[nn.Module, Facts]]
) -> Facts:
    """Builds the artifact of what `make` makes where it is staged, unless an interrupted export left it there. Returns
    the `recipe`, the `build_seconds`, and as `build` what the engine says of it and what `make` does."""
    folder = job.staged / model.name
    note = folder / "built.json"
    if note.is_file() and not job.force:
        facts = json.loads(note.read_text())
        if facts["recipe"] == recipe:
            return facts
    shutil.rmtree(folder, ignore_errors=True)
    (folder / VERSION).mkdir(parents=True)
    start = time.perf_counter()
    module, more = make()
    said = tool.build(module, model, job.variant, folder / VERSION / tool.engine.spec.artifact)
    facts = {"recipe": recipe, "build_seconds": round(time.perf_counter() - start, 2), "build": {**said, **more}}
    note.write_text(json.dumps(facts))
    return facts


def measured(
    job: Job, artifacts: Mapping[str, tuple[Tool, Path]], sized: Sam3Model, progress: Progress
) -> GateReport | None:
    """How near the artifacts, by part what runs each and its folder, come to `Sam3Model` on the job's frames; None
    where this machine runs none of them. Raises GateError where an answer has another shape than the reference's."""
    variant = job.variant
    opens = {part: (tool.open, folder / tool.engine.spec.artifact) for part, (tool, folder) in artifacts.items()}
    if not any(opener for opener, _ in opens.values()):
        return None
    progress(f"r{variant.resolution}: running Sam3Model on {len(job.frames)} frames")
    samples = gate_samples(job.frames, job.source.tokenizer, variant)
    truths = all_expected_outputs(sized, samples, reference_device())
    progress(f"r{variant.resolution}: measuring the artifacts against it")
    with ExitStack() as opened:
        runs = {}
        for part, (opener, path) in opens.items():
            if opener is None:
                continue
            runs[part] = opener(path)
            opened.callback(getattr(runs[part], "close", lambda: None))
        gate = verify(runs, variant, samples, truths, detects=job.source.name != RANDOM)
    if not job.locate:
        return gate
    found = located(artifacts["vision_encoder"][0], sized, variant, samples[0], gate)
    return replace(gate, failures=gate.failures + found)


def located(tool: Tool, sized: Sam3Model, variant: Variant, sample: Sample, gate: GateReport) -> tuple[str, ...]:
    """A sentence for each failed sub-model that `export/gate/locate.py` can look into."""
    feeds = {"vision_encoder": {"pixel_values": sample.pixel_values}, "text_encoder": {"input_ids": sample.input_ids}}
    failed = [part for part in LAYERS if any(f.startswith(f"{getattr(variant, part).name}:") for f in gate.failures)]
    return tuple(first_layer_off(tool, sized, variant, part, feeds[part]) for part in failed)


def discard(staged: Path, built: Sequence[str], gate: GateReport) -> None:
    """Removes the staged models that the gate found fault with; all of them where it names none."""
    blamed = [name for name in built if any(failure.startswith(f"{name}:") for failure in gate.failures)]
    for name in blamed or built:
        shutil.rmtree(staged / name)
    if not any(staged.iterdir()):
        staged.rmdir()
