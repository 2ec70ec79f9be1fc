"""Measures the tracker's artifacts against transformers' own tracker: every output of each, on the reference's inputs.

A fault shows in the sub-model that has it and in no other, since none is given another's answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ensemble.gate.compare import OutputCheck, compare, unpack
from ensemble.gate.limits import Limits, limits_of, part_precision
from ensemble.spec import Variant
from export.gate.detections import NO_DETECTIONS
from export.gate.tracker.reference import Arrays, TrackerTruth
from export.gate.verify import GateReport, Run, call

RELATIVE = 1e-5
"""Largest relative error in fp32. ONNX Runtime's were at most 2e-6 with random weights."""
UNDECIDED = {"fp32": 1e-4, "fp16": 0.02}
"""An object's mask and pointer are compared where the best of its three masks leads by more than this, and its score
is further from zero: on the other side of either they are another mask's, or none's."""
NUMBERS = {"track_score", "track_iou"}
"""One number for each object. A score is a logit: its error counts in parts of one, however near to zero all are."""
ABSENT = -1024.0
"""Logit all over the mask of an object that is not in its frame."""


def verify_tracker(runs: Mapping[str, Run], variant: Variant, truths: Iterable[TrackerTruth]) -> GateReport:
    """Measures the artifacts in `runs` (by part) and says which outputs are off. Raises GateError where an answer has
    another shape than the reference's."""
    checks: dict[tuple[str, str], list[tuple[float, float]]] = {}
    numbers: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    seen: dict[str, int] = {}
    for truth in truths:
        for part, inputs in truth.inputs.items():
            if part not in runs:
                continue
            decided = truth.margins.get(part, np.ones(1)) > UNDECIDED[part_precision(variant, part)]
            there = truth.outputs[part].get("track_score", np.ones(1)) > 0
            seen[part] = seen.get(part, 0) + int((decided & there).sum())
            found = call(runs, variant, part, inputs)
            for output, figures in compared(part, found, truth.outputs[part], decided, variant).items():
                checks.setdefault((part, output), []).append(figures)
            for output in NUMBERS.intersection(found):
                numbers.setdefault((part, output), []).append((found[output], truth.outputs[part][output]))
    for key, pairs in numbers.items():  # of all histories together: one object's number has no cosine
        mine, its = (np.concatenate(side) for side in zip(*pairs, strict=True))
        checks[key] = [compare(mine, its, max(1.0, float(np.abs(its).max())))]
    outputs, failures = [], []
    for (part, output), group in checks.items():
        cosines, relatives = zip(*group, strict=True)
        name = getattr(variant, part).name
        check = OutputCheck(name, output, float(np.min(cosines)), float(np.max(relatives)))
        outputs.append(check)
        failures += [sentence for sentence in [check.failure(tracker_limits(variant, part))] if sentence]
    failures += [
        f"{getattr(variant, part).name}: no object is in its frame with a mask that leads by more than"
        f" {UNDECIDED[part_precision(variant, part)]}, so that no mask could be compared: use"
        " other frames, with --frames"
        for part, count in seen.items()
        if not count
    ]
    return GateReport(tuple(outputs), NO_DETECTIONS, tuple(failures), whole=False)


def tracker_limits(variant: Variant, part: str) -> Limits:
    """Those of the precision; in fp32 closer, since what a step is off the next one remembers."""
    limits = limits_of(variant, part)
    return (
        replace(limits, relative=min(limits.relative, RELATIVE)) if part_precision(variant, part) == "fp32" else limits
    )


def compared(
    part: str, found: Mapping[str, np.ndarray], wanted: Arrays, decided: np.ndarray, variant: Variant
) -> dict[str, tuple[float, float]]:
    """Cosine and relative error of each output that is a tensor for each object; of masks and pointers those of decided
    objects count."""
    figures = {}
    for name, truth in wanted.items():
        if name in NUMBERS:
            continue
        mine, its = found[name], truth
        if name == "pointer" or (part, name) == ("tracker_step", "mask_logits"):
            compare(mine[:0], its[:0])  # the shapes
            mine, its = mine[decided], its[decided]
        if (part, name) == ("tracker_step", "mask_logits"):
            mine, its = without_absent(mine, its, wanted["track_score"][decided] <= 0)
        figures[name] = compare(mine, its)
    if part == "tracker_step":
        bits = unpack(found["mask_bits"], variant.mask_size)
        figures["mask_bits"] = compare(bits, found["mask_logits"] > 0)
    return figures


def without_absent(found: np.ndarray, wanted: np.ndarray, absent: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Masks with zeros for those of absent objects, whose logits would outweigh all others; NaN where an absent
    object's mask is another."""
    found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    found[absent] = np.where(found[absent] == ABSENT, 0.0, np.nan)
    wanted[absent] = 0.0
    return found, wanted
