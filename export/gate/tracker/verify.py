"""Measures the tracker's artifacts against transformers' own tracker: every output of each, on the reference's inputs.

A fault shows in the sub-model that has it and in no other, since none is given another's answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from ensemble.gate.limits import limits_of, part_precision
from ensemble.gate.tracker import UNDECIDED, Call, check_calls, comparable
from ensemble.spec import Variant
from export.gate.detections import NO_DETECTIONS
from export.gate.tracker.reference import TrackerTruth
from export.gate.verify import GateReport, Run, call

NOBODY = "no object is in its frame with a mask that leads by more than"
"""What is wrong where no mask could be compared."""


def verify_tracker(runs: Mapping[str, Run], variant: Variant, truths: Iterable[TrackerTruth]) -> GateReport:
    """Measures the artifacts in `runs` (by part) and says which outputs are off. Raises GateError where an answer has
    another shape than its record says."""
    outputs, failures, kept = [], [], list(truths)
    for part in runs:
        model, least = getattr(variant, part), UNDECIDED[part_precision(variant, part)]
        calls = [call_of(truth, part, least) for truth in kept if part in truth.inputs]
        checks = check_calls(partial(call, runs, variant, part), model, calls)
        outputs += checks
        failures += [sentence for check in checks if (sentence := check.failure(limits_of(variant, part)))]
        if not any((each.decided & ~each.absent).any() for each in calls):
            failures.append(
                f"{model.name}: {NOBODY} {least}, so that no mask could be compared: use other frames, with --frames"
            )
    return GateReport(tuple(outputs), NO_DETECTIONS, tuple(failures), whole=False)


def call_of(truth: TrackerTruth, part: str, least: float) -> Call:
    """A part's call in which objects whose masks lead by more than `least` are decided."""
    outputs = truth.outputs[part]
    decided = truth.margins.get(part, np.ones(1)) > least
    absent = outputs.get("track_score", np.ones(len(decided))) <= 0
    rows = {name: comparable(part, name, output, decided, absent) for name, output in outputs.items()}
    wanted = {name: (values, float(np.abs(values).max(initial=0.0))) for name, values in rows.items()}
    return Call(truth.inputs[part], wanted, decided, absent)
