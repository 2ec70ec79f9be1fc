"""Makes the truths by which a tracker's artifacts are measured where they are served: see `ensemble/gate/tracker.py`.

As those of the detector they are transformers' answers, on inputs that the file can hold small: tokens that are
repeated over a frame, feature maps that are enlarged, a pool of memories from which each object has its own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ensemble.gate import truths
from ensemble.gate.compare import GateError
from ensemble.gate.tracker import MOST_TOKENS, TRACK, UNDECIDED, tokens
from ensemble.gate.truths import TRACKER
from ensemble.spec import Variant
from export.checkpoint.tracker import LoadedTracker
from export.gate.tracker.history import histories
from export.gate.tracker.reference import Arrays, Reference, neck_maps, picks
from export.gate.tracker.verify import NOBODY, call_of

GIVEN = {
    "tracker_step": ("image_index", "memory_age", "pointer_age"),
    "memory_encoder": ("mask_logits", "keep", "hard", "there"),
    "tracker_seed": ("mask_bits",),
}
"""Inputs that the file holds of each call, by the sub-model that has them."""


@torch.no_grad()
def tracker_arrays(tracker: LoadedTracker, hidden: np.ndarray, variant: Variant, device: str = "cpu") -> Arrays:
    """The file's arrays of the tracker at the variant's resolution, for frames with the image transformer's tokens
    `hidden` fp32 [B,p*p,width]; computed on `device`, and afterwards the tracker is on the CPU again. Raises GateError
    where the tracker finds nothing that could be compared."""
    moved = tracker.model, tracker.neck
    try:
        for module in moved:
            module.to(device)  # type: ignore[arg-type]  # transformers' annotation knows no strings
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return {**_of_neck(tracker, hidden, variant, device), **_of_objects(tracker, hidden, variant, device)}
    finally:
        for module in moved:
            module.to("cpu")  # type: ignore[arg-type]


def _of_neck(tracker: LoadedTracker, hidden: np.ndarray, variant: Variant, device: str) -> Arrays:
    side = min(variant.patches, MOST_TOKENS)
    small = hidden[0].reshape(variant.patches, variant.patches, -1)[:side, :side].astype(np.float16)
    stands_for = torch.from_numpy(tokens(small, variant.patches)).to(device)
    reference = Reference(tracker, *neck_maps(tracker, stands_for), remembers=False)
    arrays = {f"{TRACKER}hidden": small}
    for name, output in reference.features.items():
        arrays |= _want(f"{TRACKER}tracker_neck/{name}", output)
    return arrays


def _of_objects(tracker: LoadedTracker, hidden: np.ndarray, variant: Variant, device: str) -> Arrays:
    levels, positions = neck_maps(tracker, torch.from_numpy(hidden[:1]).to(device))
    named = zip(TRACK, levels, strict=True)
    small = {n: F.adaptive_avg_pool2d(m, variant.patches).half().numpy(force=True) for n, m in named}
    maps = truths.feature_maps(small, len(hidden), TRACK)
    reference = Reference(tracker, [torch.from_numpy(maps[name]).to(device) for name in TRACK], positions)
    known = histories(variant, len(hidden))
    arrays: Arrays = {f"{TRACKER}features/{name}": array for name, array in small.items()}
    pool = {"track_x": reference.attended_tokens, "maps": reference.maps, "pointers": reference.pointers}
    arrays |= {f"{TRACKER}{name}": values.half().numpy(force=True) for name, values in pool.items()}
    arrays[f"{TRACKER}calls"] = np.array(len(known), np.int32)
    compared = False
    for i, history in enumerate(known):
        truth, place = reference.truth(history), f"{TRACKER}{i}/"
        given = {name: truth.inputs[part][name] for part, names in GIVEN.items() for name in names}
        given["mask_logits"] = given["mask_logits"].astype(np.float16)
        for name, ages in (("map_picks", history.memory_age), ("pointer_picks", history.pointer_age)):
            given[name] = picks(history.image_index, len(hidden), ages.shape[1]).astype(np.uint8)
        for part in GIVEN:
            call = call_of(truth, part, max(UNDECIDED.values()))
            if part in truth.margins:
                given[f"{part}/decided"] = call.decided
            if part == "tracker_step":
                given["absent"] = call.absent
                compared |= bool((call.decided & ~call.absent).any())
            for name, (values, _) in call.wanted.items():
                arrays |= _want(f"{place}{part}/{name}", values)
        arrays |= {f"{place}{name}": array for name, array in given.items()}
    if not compared:
        raise GateError(f"{variant.tracker_step.name}: {NOBODY} {max(UNDECIDED.values())}: use other frames, --frames")
    return arrays


def _want(name: str, output: np.ndarray) -> Arrays:
    return {f"want/{name}/{kind}": array for kind, array in truths.keep(output).items()}
