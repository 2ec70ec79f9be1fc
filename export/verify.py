"""The gate: artifacts and `Sam3Model`'s own answers in, a report out that names every output that is off.

Each sub-model is fed with the reference's tensors, so that a fault shows where it is and not downstream; then the artifacts run one after another as they
do in the server, and their detections are compared with the reference's. Whatever runs the artifacts (ONNX Runtime, a TensorRT plan, a compiled package)
is handed in as one function for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ensemble.spec import Variant
from export.reference import Arrays, Sample, scores

Run = Callable[[Arrays], dict[str, np.ndarray]]
"""Inputs by name in, outputs by name out."""

NUMPY_DTYPES = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32, "FP16": np.float16}
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What an artifact may differ by: `relative` is max|a-b| / max|b| of one output, `cosine` the least similarity of one output (flattened);
    of detections, `iou` is the least overlap of boxes and of masks, `score` the largest difference. A query whose reference score is within `margin`
    of the threshold may fall on either side of it."""

    relative: float
    cosine: float
    iou: float
    score: float
    margin: float


LIMITS = {
    "fp32": Limits(relative=1e-4, cosine=0.999999, iou=0.998, score=1e-4, margin=1e-4),
    "fp16": Limits(relative=float("inf"), cosine=0.999, iou=0.98, score=0.03, margin=0.02),
}
"""By precision of the artifact."""


class GateError(RuntimeError):
    """An artifact is not the checkpoint it was made from; the message names the outputs."""


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of one sub-model against the reference, over all samples."""

    model: str
    output: str
    cosine: float
    relative: float

    def failure(self, limits: Limits) -> str | None:
        if not (self.cosine >= limits.cosine):  # written so that NaN fails
            return f"{self.model}: {self.output} has cosine {self.cosine:.6f}, expected at least {limits.cosine}"
        if not (self.relative <= limits.relative):
            return f"{self.model}: {self.output} has relative error {self.relative:.2e}, expected at most {limits.relative:.0e}"
        return None


@dataclass(frozen=True, slots=True)
class DetectionCheck:
    """Detections of the whole chain against the reference: how many it expects, how many were found at the same query, which were not, and how far off."""

    threshold: float
    expected: int
    matched: int
    missing: int
    unexpected: int
    borderline: int  # fell on the other side, but within the margin
    box_iou: float  # least over matched
    mask_iou: float
    score_difference: float  # largest over matched

    def failures(self, limits: Limits) -> list[str]:
        found = []
        if self.missing or self.unexpected:
            found.append(
                f"detections: {self.missing} of {self.expected} missing, {self.unexpected} unexpected at threshold {self.threshold:.3f}"
            )
        for name, value in (("box", self.box_iou), ("mask", self.mask_iou)):
            if not (value >= limits.iou):
                found.append(f"detections: least {name} IoU is {value:.4f}, expected at least {limits.iou}")
        if not (self.score_difference <= limits.score):
            found.append(f"detections: scores differ by up to {self.score_difference:.4f}, expected at most {limits.score}")
        return found


@dataclass(frozen=True, slots=True)
class GateReport:
    """Everything that was measured; `failures` is empty if the artifacts may enter the repository."""

    outputs: tuple[OutputCheck, ...]
    detections: DetectionCheck
    failures: tuple[str, ...]

    def raise_for_failures(self) -> None:
        if self.failures:
            raise GateError("; ".join(self.failures) + ". Nothing was written; export again, in fp32 if this was fp16")


def verify(runs: Mapping[str, Run], variant: Variant, samples: Iterable[Sample], expected: Iterable[Arrays]) -> GateReport:
    """Measures the five artifacts in `runs` (by part) against `expected` (see `reference.expected_outputs`) for each sample."""
    limits = LIMITS["fp32" if variant.precision == "fp32" else "fp16"]
    runs = {**runs, "vision_encoder": remembering(runs["vision_encoder"])}  # samples share their frames, and it is the dear part
    checks: dict[tuple[str, str], list[OutputCheck]] = {}
    detections = []
    for sample, truth in zip(samples, expected, strict=True):
        threshold = _threshold(truth)
        picks = strongest(scores(truth), variant.max_picks)
        for check in check_parts(runs, variant, sample, truth, picks):
            checks.setdefault((check.model, check.output), []).append(check)
        chained = run_chain(runs, variant, sample, picks)
        detections.append(check_detections(chained, truth, picks, threshold, limits.margin))
    outputs = tuple(
        OutputCheck(*key, float(np.min([c.cosine for c in group])), float(np.max([c.relative for c in group])))
        for key, group in checks.items()
    )
    summary = _merge(detections)
    failures = [f for f in (check.failure(limits) for check in outputs) if f] + summary.failures(limits)
    return GateReport(outputs, summary, tuple(failures))


def remembering(run: Run) -> Run:
    """`run`, but asked for the same arrays as the last time it gives the last answer again."""
    asked: Arrays = {}
    answer: dict[str, np.ndarray] = {}

    def again(feed: Arrays) -> dict[str, np.ndarray]:
        nonlocal asked, answer
        if not asked or any(asked[name] is not array for name, array in feed.items()):
            asked, answer = feed, run(feed)
        return dict(answer)

    return again


def strongest(score: np.ndarray, most: int) -> np.ndarray:
    """Indices int32 [N,T] of each row's best queries, T = min(most, Q)."""
    return np.argsort(-score, axis=1, kind="stable")[:, :most].astype(np.int32)


# ---- one sub-model at a time, on the reference's tensors
def check_parts(runs: Mapping[str, Run], variant: Variant, sample: Sample, truth: Arrays, picks: np.ndarray) -> list[OutputCheck]:
    """Every output of every sub-model; the geometry encoder only where the sample has boxes."""
    slots = sample.boxes.shape[1]
    prompt, mask = prompt_inputs(sample, truth["text_features"], truth["geometry_features"] if slots else None)
    pairs = np.arange(len(picks), dtype=np.int32)
    feeds: dict[str, Arrays] = {
        "vision_encoder": {"pixel_values": sample.pixel_values},
        "text_encoder": {"input_ids": sample.input_ids},
        "decoder": {"fpn_2": truth["fpn_2"], "image_index": sample.image_index, "prompt_features": prompt, "prompt_mask": mask},
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
    checks = []
    for part, feed in feeds.items():
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
        checks += [OutputCheck(model.name, name, *_compare(out[name], wanted[name])) for name in out]
    return checks


def prompt_inputs(sample: Sample, text: np.ndarray, geometry: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`prompt_features` [N,S,C] and `prompt_mask` int32 [N,S] of the sample's pairs: 32 text tokens, then the geometry tokens if there are any."""
    features, mask = text[sample.prompt_index], sample.text_mask[sample.prompt_index]
    if geometry is None:
        return features, mask
    return np.concatenate([features, geometry], 1), np.concatenate([mask, geometry_mask(sample)], 1)


def geometry_mask(sample: Sample) -> np.ndarray:
    """int32 [N,K+1]: the class token and each real box of pairs with boxes, nothing of the others."""
    real = sample.box_labels >= 0
    return np.concatenate([real.any(1, keepdims=True), real], 1).astype(np.int32)


def call(runs: Mapping[str, Run], variant: Variant, part: str, feed: Arrays) -> dict[str, np.ndarray]:
    """One call of an artifact, its inputs in the record's order and dtypes."""
    model = getattr(variant, part)
    return runs[part]({t.name: np.ascontiguousarray(feed[t.name], NUMPY_DTYPES[t.dtype]) for t in model.inputs})


def unpack(bits: np.ndarray, size: int) -> np.ndarray:
    """Packed mask rows uint8 [...,ceil(size/8)] -> bool [...,size]."""
    return np.unpackbits(bits, axis=-1)[..., :size].astype(bool)


def _compare(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Cosine of the flattened tensors, and max|found-wanted| / max|wanted|."""
    if found.shape != wanted.shape:
        raise GateError(
            f"expected shape {wanted.shape}, got {found.shape}; export again, ensemble/spec.py and the artifact disagree"
        )
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    if not np.isfinite(a).all():
        return float("nan"), float("inf")
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(a @ b / norms) if norms else float(not a.any() and not b.any())
    return cosine, float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


# ---- all of them, one after another
def run_chain(runs: Mapping[str, Run], variant: Variant, sample: Sample, picks: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of decoder and mask head when every sub-model gets what the one before it made; masks of `picks` [N,T]."""
    out = call(runs, variant, "vision_encoder", {"pixel_values": sample.pixel_values})
    text = call(runs, variant, "text_encoder", {"input_ids": sample.input_ids})["text_features"]
    feed = {**out, "image_index": sample.image_index, "boxes": sample.boxes, "box_labels": sample.box_labels}
    geometry = call(runs, variant, "geometry_encoder", feed)["geometry_features"] if sample.boxes.shape[1] else None
    feed["prompt_features"], feed["prompt_mask"] = prompt_inputs(sample, text, geometry)
    out |= call(runs, variant, "decoder", feed)
    feed |= out | {"pair_index": np.arange(len(picks), dtype=np.int32), "query_index": picks}
    return out | call(runs, variant, "mask_head", feed)


def check_detections(found: Arrays, truth: Arrays, picks: np.ndarray, threshold: float, margin: float) -> DetectionCheck:
    """Compares detections query by query: the same query of the same pair is the same detection, in whatever order scores put them."""
    score, reference = scores(found), scores(truth)
    here, there = score >= threshold, reference >= threshold
    close = np.abs(reference - threshold) <= margin
    both = here & there
    boxes = box_iou(found["pred_boxes"].astype(np.float64)[both], truth["pred_boxes"].astype(np.float64)[both])
    picked = np.take_along_axis(both, picks, 1)  # [N,T]
    mask_logits = np.take_along_axis(truth["mask_logits"], picks[..., None, None], 1)
    masks = mask_iou(found["mask_logits"][picked] > 0, mask_logits[picked] > 0)
    return DetectionCheck(
        threshold=threshold,
        expected=int(there.sum()),
        matched=int(both.sum()),
        missing=int((there & ~here & ~close).sum()),
        unexpected=int((here & ~there & ~close).sum()),
        borderline=int(((here != there) & close).sum()),
        box_iou=float(boxes.min(initial=1.0)),
        mask_iou=float(masks.min(initial=1.0)),
        score_difference=float(np.abs(score - reference)[both].max(initial=0.0)),
    )


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of boxes xyxy [D,4] row by row -> [D]."""
    inner = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    outer = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner
    return np.where(outer > 0, inner / np.where(outer > 0, outer, 1), 1.0)


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of masks bool [D,H,W] row by row -> [D]; two empty masks overlap fully."""
    inner, outer = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return np.where(outer > 0, inner / np.where(outer > 0, outer, 1), 1.0)


def _threshold(truth: Arrays) -> float:
    """The usual threshold where something reaches it; otherwise the middle of the widest gap near the upper quartile of all scores,
    so that a checkpoint which finds nothing in the gate's frames is still compared on detections."""
    values = np.sort(scores(truth).ravel())
    if values[-1] >= THRESHOLD:
        return THRESHOLD
    upper = values[len(values) * 3 // 4 :]
    gap = int(np.argmax(np.diff(upper))) if len(upper) > 1 else 0
    return float(upper[gap : gap + 2].mean())


def _merge(checks: list[DetectionCheck]) -> DetectionCheck:
    total = {
        name: sum(getattr(c, name) for c in checks) for name in ("expected", "matched", "missing", "unexpected", "borderline")
    }
    return DetectionCheck(
        threshold=min(c.threshold for c in checks),
        **total,
        box_iou=min(c.box_iou for c in checks),
        mask_iou=min(c.mask_iou for c in checks),
        score_difference=max(c.score_difference for c in checks),
    )
