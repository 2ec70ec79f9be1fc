"""Measures the tracker's sub-models, each on inputs of its own: the whole of a call's outputs where the export makes
them, and the stored part of them where they are served.

Which rows count is decided here for both: an object's mask and pointer are another mask's, or none's, on the other side
of a decision that rounding may turn. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ensemble.gate.compare import GateError, OutputCheck, compare, unpack
from ensemble.gate.truths import TRACKER, Arrays, Truths, chosen, feature_maps
from ensemble.records import ModelSpec

UNDECIDED = {"fp32": 1e-4, "fp16": 0.02}
"""An object's mask and pointer are compared where the best of its three masks leads by more than this, and its score
is further from zero. Truths that are stored for every precision take fp16's."""
NUMBERS = ("track_score", "track_iou")
"""One number for each object. A score is a logit: its error counts in parts of one, however near to zero all are."""
MASKS = ("tracker_step", "mask_logits")
ABSENT = -1024.0
"""Logit all over the mask of an object that is not in its frame."""
TRACK = ("track_0", "track_1", "track_2")
MOST_TOKENS = 16
"""Tokens a side of what stands for a frame's `hidden` in the file."""


@dataclass(frozen=True)
class Call:
    """One call of a sub-model: its inputs, of each output the values that it should have, as `comparable` makes them,
    and their peak; and of N objects whose answers are `decided` and who are `absent` from their frames (bool [N])."""

    inputs: Arrays
    wanted: Mapping[str, tuple[np.ndarray, float]]
    decided: np.ndarray
    absent: np.ndarray


def comparable(part: str, name: str, output: np.ndarray, decided: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """What counts of an output: of masks and pointers the decided objects'; masks of absent objects, whose logits would
    outweigh all others, as zeros, or NaN where they are not what an absent object's should be."""
    if name != "pointer" and (part, name) != MASKS:
        return output
    output = output[decided]
    if name == "pointer":
        return output
    output, gone = output.astype(np.float32), absent[decided]
    output[gone] = np.where(output[gone] == ABSENT, np.float32(0), np.float32(np.nan))
    return output


def check_calls(
    run: Callable[[Arrays], Mapping[str, np.ndarray]],
    model: ModelSpec,
    calls: Iterable[Call],
    choose: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> list[OutputCheck]:
    """Every output of one sub-model over all its calls; `choose` picks the values that the truths have kept. Raises
    GateError where an answer has another shape than its record says."""
    groups: dict[str, list[tuple[float, float]]] = {}
    numbers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for call in calls:
        found = run(call.inputs)
        _check_shapes(model, call, found)
        for name, (values, peak) in call.wanted.items():
            mine = choose(comparable(model.part, name, found[name], call.decided, call.absent))
            if name in NUMBERS:
                numbers.setdefault(name, []).append((mine, values))
            else:
                groups.setdefault(name, []).append(compare(mine, values, peak))
        if model.part == MASKS[0]:
            logits = found["mask_logits"]
            bits = compare(unpack(found["mask_bits"], logits.shape[-1]), logits > 0)
            groups.setdefault("mask_bits", []).append(bits)
    for name, pairs in numbers.items():  # of all calls together: one object's number has no cosine
        mine, its = (np.concatenate(side) for side in zip(*pairs, strict=True))
        groups[name] = [compare(mine, its, max(1.0, float(np.abs(its).max())))]
    return [
        OutputCheck(model.name, name, float(np.min([c for c, _ in all_])), float(np.max([r for _, r in all_])))
        for name, all_ in groups.items()
    ]


def _check_shapes(model: ModelSpec, call: Call, found: Mapping[str, np.ndarray]) -> None:
    sizes = {axis.name: call.inputs[t.name].shape[i] for t in model.inputs for i, axis in t.axes.items()}
    for tensor in model.outputs:
        wanted, got = tensor.shape(**sizes), found[tensor.name].shape
        if got != wanted:
            raise GateError(
                f"expected {tensor.name} of shape {wanted}, got {got}; export again, ensemble/spec.py and the artifact"
                " disagree"
            )


# ---- what the file holds
def stored_calls(part: str, truths: Truths) -> Iterator[Call]:
    """The calls that the truths have of a sub-model, with `chosen` values."""
    kept = truths.below(TRACKER)
    if part == "tracker_neck":
        inputs = {"hidden": tokens(kept["hidden"], truths.variant.patches)}
        yield Call(inputs, _wanted(part, truths, f"{TRACKER}{part}/"), np.ones(1, bool), np.zeros(1, bool))
        return
    small = {name: kept[f"features/{name}"] for name in TRACK}
    maps = feature_maps(small, int(truths.arrays["images"]), TRACK) | {"track_x": kept["track_x"]}
    for i in range(int(kept["calls"])):
        given = truths.below(f"{TRACKER}{i}/")
        if part == "tracker_step":
            given |= {"memory": kept["maps"][given["map_picks"]], "pointers": kept["pointers"][given["pointer_picks"]]}
        decided = given.get(f"{part}/decided", np.ones(len(given["image_index"]), bool))
        yield Call({**maps, **given}, _wanted(part, truths, f"{TRACKER}{i}/{part}/"), decided, given["absent"])


def _wanted(part: str, truths: Truths, folder: str) -> dict[str, tuple[np.ndarray, float]]:
    names = [t.name for t in getattr(truths.variant, part).outputs]
    return {n: truths.wanted(f"want/{folder}{n}") for n in names if f"want/{folder}{n}/values" in truths.arrays}


def measure_stored(run: Callable[[Arrays], Mapping[str, np.ndarray]], part: str, truths: Truths) -> list[OutputCheck]:
    """`check_calls` of what the truths hold."""
    return check_calls(run, getattr(truths.variant, part), stored_calls(part, truths), chosen)


def tokens(small: np.ndarray, patches: int) -> np.ndarray:
    """`hidden` fp32 [1,p*p,W] of the tokens [s,s,W] that the file holds: they are repeated over the frame, each time in
    another of four strengths, so that none can stand for another."""
    y, x = np.indices((patches, patches))
    side = len(small)
    strength = (0.625 + 0.25 * ((y // side + 2 * (x // side)) % 4)).astype(np.float32)
    return (small[y % side, x % side].astype(np.float32) * strength[..., None]).reshape(1, patches**2, -1)
