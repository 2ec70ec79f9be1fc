"""Exports one variant of a loaded checkpoint: five verified sub-models and the configurations of a Triton repository.

Every artifact is built beside the repository, measured by the gate, and moved in only when all of a variant's artifacts
passed. What has not changed since the last run is kept.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from torch import nn
from transformers import Sam3Model

from ensemble.gate.limits import BESIDE_INT8, IN_INT8, part_precision
from ensemble.spec import Variant
from export.checkpoint import RANDOM, at_size
from export.engines.engine import Tool
from export.engines.registry import ready
from export.gate.frames import Frame, gate_samples
from export.gate.locate import LAYERS, first_layer_off
from export.gate.reference import Arrays, Sample, all_expected_outputs, reference_device
from export.gate.truths import store_truths, truths_hash
from export.gate.verify import GateReport, verify
from export.manifest import manifest, recipe
from export.repository import VERSION, Written, is_current, publish, write_configurations
from export.slim.calibration import FILE as CALIBRATION
from export.slim.calibration import Calibration, digest, drawn_pixels
from export.slim.fp8 import calibrate
from export.slim.int8_inputs import Feeds, calibration_inputs, calibration_scenes, int8_feeds
from export.slim.int8_inputs import digest as digest_int8
from export.staging import Facts, Job, Progress, admit, built_all, opened, staged_build
from export.sub_models.parts import PARTS, make_part
from export.sub_models.precision import torch_precision

log = logging.getLogger(__name__)

Expected = Callable[[], tuple[Sequence[Sample], Sequence[Arrays]]]
"""The gate's samples and what `Sam3Model` answers to them, computed when it is first asked."""


def export_variant(job: Job, progress: Progress = lambda step: None) -> list[Written]:
    """Writes the variant into the repository and returns what is there now.

    Artifacts whose manifest is still true are kept; if any has to be built, all five pass the gate together. The next
    export of the same variant goes on with what an interrupted one had built and, after a failure, with what was not at
    fault. Raises EngineError before anything is built, GateError before anything is moved in.
    """
    source, variant, root = job.source, job.variant, job.root
    tool = ready(job.engine, job.tensorrt, variant.precision)
    calibration = calibrated(job, progress) if variant.precision == "fp8" else None
    seen = calibration.text() if calibration else ""
    if variant.precision == "int8":
        seen = truths_hash(source, variant, job.frames)
    scenes: Sequence[Frame] = ()
    if variant.precision == "int8_fp16":
        scenes = calibration_scenes(job.calibration, job.calibration_prompts, variant.resolution)
        seen = digest_int8(scenes, job.calibration_method, source)
    names = {part: getattr(variant, part).name for part in PARTS}
    recipes = {part: recipe(source, variant, part, tool, calibration=seen) for part in PARTS}
    kept = {part for part in PARTS if not job.force and is_current(root / names[part], recipes[part])}
    if len(kept) < len(PARTS):
        job.staged.parent.mkdir(parents=True, exist_ok=True)
        sized = at_size(source.model, variant.resolution, variant.queries)
        expected = cache(partial(expected_of, job, sized, progress))

        @cache
        def inputs() -> Mapping[str, Feeds]:
            if variant.precision == "int8":
                return {part: int8_feeds(variant, part, *expected()) for part in IN_INT8}
            progress(f"r{variant.resolution}: calibrating int8 on {len(scenes)} frames")
            return calibration_inputs(scenes, source, sized, variant)

        def build(part: str) -> Facts:
            progress(f"{names[part]}: building {tool.engine.spec.artifact}")
            return build_part(job, tool, sized, part, recipes[part], calibration, inputs)

        missing = [part for part in PARTS if part not in kept]
        built = dict(zip(missing, built_all(build, missing, tool.engine.side_by_side), strict=True))
        folders = {part: (root if part in kept else job.staged) / names[part] / VERSION for part in PARTS}
        gate = measured(job, {part: (tool, folder) for part, folder in folders.items()}, sized, expected, progress)
        if gate is None:
            log.warning("%s: built, but this machine cannot run it: the gate has not seen it", variant.front_name)
        admit(job, tool, built, recipes, gate)
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
        expected = partial(expected_of, job, sized, progress)
        artifacts = {part: (tool, root / getattr(job.variant, part).name / VERSION) for part in PARTS}
        gate = measured(job, {**artifacts, "text_encoder": (runner, staged / VERSION)}, sized, expected, progress)
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


def build_part(
    job: Job,
    tool: Tool,
    sized: Sam3Model,
    part: str,
    recipe: str,
    calibration: Calibration | None = None,
    inputs: Callable[[], Mapping[str, Feeds]] | None = None,
) -> Facts:
    """`staged_build` of one of the five sub-models; in fp8 the calibration lies beside the artifact, and in int8 its
    layers are chosen by `inputs` of each part."""
    model = getattr(job.variant, part)

    def make() -> tuple[nn.Module, Facts]:
        hidden = job.variant.tracker is not None
        module = make_part(part, sized, tool.engine.style, torch_precision(job.variant), hidden)
        if part_precision(job.variant, part) in BESIDE_INT8:
            assert tool.engine.in_int8 is not None, "an engine that makes int8 says how"
            assert inputs is not None, "whoever builds in int8 has inputs"
            return tool.engine.in_int8(module, inputs()[part], job.calibration_method), {}
        if not calibration or part_precision(job.variant, part) != "fp8":
            return module, {}
        assert tool.engine.in_fp8 is not None, "an engine that makes fp8 says how"
        (job.staged / model.name / VERSION / CALIBRATION).write_text(calibration.text())
        return tool.engine.in_fp8(module, calibration), {"calibration": calibration.summary()}

    return staged_build(job, tool, model, recipe, make)


def expected_of(job: Job, sized: Sam3Model, progress: Progress) -> tuple[Sequence[Sample], Sequence[Arrays]]:
    """The gate's samples of the job's frames, and what `Sam3Model` answers to each."""
    progress(f"r{job.variant.resolution}: running Sam3Model on {len(job.frames)} frames")
    samples = gate_samples(job.frames, job.source.tokenizer, job.variant)
    return samples, all_expected_outputs(sized, samples, reference_device())


def measured(
    job: Job,
    artifacts: Mapping[str, tuple[Tool, Path]],
    sized: Sam3Model,
    expected: Expected,
    progress: Progress,
) -> GateReport | None:
    """How near the artifacts, by part what runs each and its folder, come to `Sam3Model` on the job's frames; None
    where this machine runs none of them. Raises GateError where an answer has another shape than the reference's."""
    variant = job.variant
    if not any(tool.open for tool, _ in artifacts.values()):
        return None
    samples, truths = expected()
    progress(f"r{variant.resolution}: measuring the artifacts against it")
    with opened(artifacts) as runs:
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
