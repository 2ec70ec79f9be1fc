"""The gate: compares artifacts with the answers of `Sam3Model` itself and names every output that is off.

Each sub-model is given the reference's tensors, so that a fault shows where it is and not downstream; then the
artifacts run one after another as they do in the server, and their detections are compared with the reference's.
Whatever runs the artifacts (ONNX Runtime, a TensorRT plan, a compiled package) is passed in as one function for each
part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ensemble.gate.compare import GateError as GateError
from ensemble.gate.compare import OutputCheck as OutputCheck
from ensemble.gate.compare import compare, unpack
from ensemble.gate.limits import Limits, limits_of
from ensemble.records import NUMPY_DTYPES
from ensemble.spec import Variant
from export.gate.detections import NO_DETECTIONS, DetectionCheck, check_detections, merged, threshold_of
from export.gate.reference import Arrays, Sample, scores

Run = Callable[[Arrays], dict[str, np.ndarray]]
"""A sub-model as a function from inputs by name to outputs by name."""


@dataclass(frozen=True, slots=True)
class GateReport:
    """Everything that was measured; `failures` is empty if the artifacts may enter the repository."""

    outputs: tuple[OutputCheck, ...]
    detections: DetectionCheck
    failures: tuple[str, ...]
    whole: bool = True  # all five ran, one after another; otherwise no detection was looked for

    def raise_for_failures(self) -> None:
        if self.failures:
            remedy = "Nothing was written; export again, in fp32 if this was fp16, in fp16 if this was fp8"
            raise GateError("; ".join(self.failures) + f". {remedy}")


def verify(
    runs: Mapping[str, Run],
    variant: Variant,
    samples: Iterable[Sample],
    expected: Iterable[Arrays],
    detects: bool = True,
    limits: Limits | None = None,
) -> GateReport:
    """Measures the artifacts in `runs` (by part) against `expected` (see `reference.expected_outputs`) for each sample;
    their detections where `runs` has all five.

    `detects`: the checkpoint has learnt to detect. Random weights have not, and their detections change with every
    rounding (real-size fp16 on an H200: a box IoU of 0.93 at cosines above 0.9997). So their detections are measured
    but never make the gate fail; their outputs do. `limits` are those of the variant unless others are given.
    """
    of_part = {getattr(variant, part).name: limits or limits_of(variant, part) for part in runs}
    limits = limits or limits_of(variant)
    whole = all(model.part in runs for model in variant.sub_models)
    if "vision_encoder" in runs:
        runs = {**runs, "vision_encoder": remembering(runs["vision_encoder"])}  # slow, and samples share their frames
    checks: dict[tuple[str, str], list[OutputCheck]] = {}
    detections = []
    for sample, truth in zip(samples, expected, strict=True):
        threshold = threshold_of(truth)
        picks = strongest(scores(truth), variant.max_picks)
        for check in check_parts(runs, variant, sample, truth, picks):
            checks.setdefault((check.model, check.output), []).append(check)
        if not whole:
            continue
        chained = run_chain(runs, variant, sample, picks)
        detections.append(
            check_detections(chained, truth, picks, threshold, limits.margin, limits.mask_margin, limits.box_margin)
        )
    outputs = tuple(
        OutputCheck(*key, float(np.min([c.cosine for c in group])), float(np.max([c.relative for c in group])))
        for key, group in checks.items()
    )
    summary = merged(detections) if whole else NO_DETECTIONS
    failures = [f for f in (check.failure(of_part[check.model]) for check in outputs) if f] + (
        summary.failures(limits) if detects else []
    )
    return GateReport(outputs, summary, tuple(failures), whole)


def remembering(run: Run) -> Run:
    """`run`, which returns its last answer again when it is called with the same arrays."""
    asked: Arrays = {}
    answer: dict[str, np.ndarray] = {}

    def again(feed: Arrays) -> dict[str, np.ndarray]:
        nonlocal asked, answer
        if not asked or any(asked[name] is not array for name, array in feed.items()):
            asked, answer = feed, run(feed)
        return dict(answer)

    return again


def strongest(score: np.ndarray, most: int) -> np.ndarray:
    """Indices int32 [N,T] of the queries with the highest `score` [N,Q] in each row, T = min(most, Q)."""
    return np.argsort(-score, axis=1, kind="stable")[:, :most].astype(np.int32)


# ---- one sub-model at a time, on the reference's tensors
def check_parts(
    runs: Mapping[str, Run], variant: Variant, sample: Sample, truth: Arrays, picks: np.ndarray
) -> list[OutputCheck]:
    """Every output of every sub-model in `runs`; the geometry encoder only where the sample has boxes."""
    checks = []
    for part, feed in feeds_of(sample, truth, picks).items():
        if part not in runs:
            continue
        model = getattr(variant, part)
        out = call(runs, variant, part, feed)
        wanted = {name: truth[name] for name in out if name in truth}
        if part == "text_encoder":
            out = {"text_features": out["text_features"] * sample.text_mask[..., None]}
        elif part == "geometry_encoder":
            out = {"geometry_features": out["geometry_features"] * geometry_mask(sample)[..., None]}
        elif part == "mask_head":
            wanted = {"mask_logits": np.take_along_axis(truth["mask_logits"], picks[..., None, None], 1)}
            wanted["mask_bits"], out["mask_bits"] = out["mask_logits"] > 0, unpack(out["mask_bits"], variant.mask_size)
        checks += [OutputCheck(model.name, name, *compare(out[name], wanted[name])) for name in out]
    return checks


def feeds_of(sample: Sample, truth: Arrays, picks: np.ndarray) -> dict[str, Arrays]:
    """What each sub-model is called with, by part: the sample's own arrays and the reference's of the sub-models before
    it. The geometry encoder is called only where the sample has boxes."""
    slots = sample.boxes.shape[1]
    prompt, mask = prompt_inputs(sample, truth["text_features"], truth["geometry_features"] if slots else None)
    pairs = np.arange(len(picks), dtype=np.int32)
    feeds: dict[str, Arrays] = {
        "vision_encoder": {"pixel_values": sample.pixel_values},
        "text_encoder": {"input_ids": sample.input_ids},
        "decoder": {
            "fpn_2": truth["fpn_2"],
            "image_index": sample.image_index,
            "prompt_features": prompt,
            "prompt_mask": mask,
        },
        "mask_head": {
            **{name: truth[name] for name in ("fpn_0", "fpn_1", "memory", "query_features")},
            **{"prompt_features": prompt, "prompt_mask": mask},
            **{"image_index": sample.image_index, "pair_index": pairs, "query_index": picks},
        },
    }
    if slots:
        feeds["geometry_encoder"] = {
            **{"fpn_2": truth["fpn_2"], "image_index": sample.image_index},
            **{"boxes": sample.boxes, "box_labels": sample.box_labels},
        }
    return feeds


def prompt_inputs(sample: Sample, text: np.ndarray, geometry: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`prompt_features` [N,S,C] and `prompt_mask` int32 [N,S] of the sample's pairs: 32 text tokens, then the geometry
    tokens if there are any."""
    features, mask = text[sample.prompt_index], sample.text_mask[sample.prompt_index]
    if geometry is None:
        return features, mask
    return np.concatenate([features, geometry], 1), np.concatenate([mask, geometry_mask(sample)], 1)


def geometry_mask(sample: Sample) -> np.ndarray:
    """int32 [N,K+1]: the class token and each real box of pairs with boxes, nothing of the others."""
    real = sample.box_labels >= 0
    return np.concatenate([real.any(1, keepdims=True), real], 1).astype(np.int32)


def call(runs: Mapping[str, Run], variant: Variant, part: str, feed: Arrays) -> dict[str, np.ndarray]:
    """The outputs of an artifact, called with the record's inputs in their order and dtypes; the text encoder is called
    with at most as many prompts at a time as its record allows."""
    model = getattr(variant, part)
    arrays = {t.name: np.ascontiguousarray(feed[t.name], NUMPY_DTYPES[t.dtype]) for t in model.inputs}
    if part != "text_encoder":
        return runs[part](arrays)
    most = model.inputs[0].axes[0].maximum
    starts = range(0, len(feed["input_ids"]), most)
    answers = [runs[part]({n: a[i : i + most] for n, a in arrays.items()}) for i in starts]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


# ---- all of them, one after another
def run_chain(runs: Mapping[str, Run], variant: Variant, sample: Sample, picks: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of decoder and mask head when every sub-model gets the outputs of those before it; masks of the queries
    `picks` [N,T]."""
    out = call(runs, variant, "vision_encoder", {"pixel_values": sample.pixel_values})
    text = call(runs, variant, "text_encoder", {"input_ids": sample.input_ids})["text_features"]
    feed = {**out, "image_index": sample.image_index, "boxes": sample.boxes, "box_labels": sample.box_labels}
    geometry = call(runs, variant, "geometry_encoder", feed)["geometry_features"] if sample.boxes.shape[1] else None
    feed["prompt_features"], feed["prompt_mask"] = prompt_inputs(sample, text, geometry)
    out |= call(runs, variant, "decoder", feed)
    feed |= out | {"pair_index": np.arange(len(picks), dtype=np.int32), "query_index": picks}
    return out | call(runs, variant, "mask_head", feed)
