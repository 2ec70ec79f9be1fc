"""One frame of a video session, checked: the frame itself as for pictures, and what the session is told with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ensemble import request
from ensemble.request import FrameRequest, RequestError
from ensemble.spec import MAX_CLASSES
from ensemble.video.variant import DEFAULT_DETECT_EVERY, DEFAULT_OBJECTS, MAX_DETECT_EVERY, MAX_OBJECTS, VideoVariant

CONTROLS = ("START", "END", "CORRID")
"""Triton's own inputs of a sequence: the session begins, the session ends, and whose frame it is."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """Objects that a session goes on with: `ids` int64 [K], all different and at least 0; `class_ids` int32 [K]; `bits`
    uint8 [K,4p,ceil(4p/8)], none of them empty."""

    ids: np.ndarray
    class_ids: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True, slots=True)
class Asked:
    """What a frame says of its session: its id, whether it begins and ends with this frame, in which frames the
    detector looks, how many objects it may have at a time, the least id of new ones, and which it begins with."""

    session: int
    start: bool = False
    end: bool = False
    detect_every: int = DEFAULT_DETECT_EVERY
    max_objects: int = DEFAULT_OBJECTS
    first_id: int = 1
    seeds: Seeds | None = None


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """`frame` is None where a session ends without one."""

    asked: Asked
    frame: FrameRequest | None = field(default=None)


def parse(arrays: Mapping[str, np.ndarray], variant: VideoVariant) -> VideoRequest:
    """From arrays named as `VideoVariant.front.inputs` and CONTROLS, with a leading batch dimension of 1. Raises
    RequestError."""
    for name in CONTROLS:
        if name not in arrays or arrays[name].size != 1:
            raise RequestError(
                f"{variant.front_name}: expected a frame of a session, got one without {name}; send a sequence id, and"
                " the start flag with the first frame"
            )
    start, end, session = (int(arrays[name].item(0)) for name in CONTROLS)
    if not session:
        raise RequestError("session: expected a sequence id of 1 or more, got 0")
    values = {name: array for name, array in arrays.items() if name not in CONTROLS}
    if end and not (_given(values, "image") or _given(values, "frame")):
        return VideoRequest(Asked(session, bool(start), True))
    frame = request.parse(values, max_boxes=1)
    every = _count(values, "detect_every", DEFAULT_DETECT_EVERY, MAX_DETECT_EVERY)
    most = _count(values, "max_objects", DEFAULT_OBJECTS, MAX_OBJECTS)
    first_id = _count(values, "first_id", 1, 2**62)
    seeds = _seeds(values, len(frame.classes), most, variant)
    if seeds is not None and not start:
        raise RequestError("seed_ids: expected objects with a session's first frame alone, got some in its course")
    return VideoRequest(Asked(session, bool(start), bool(end), every, most, first_id, seeds), frame)


def _given(values: Mapping[str, np.ndarray], name: str) -> bool:
    array = values.get(name)
    return array is not None and array.size > 0 and (array.dtype != object or bool(array.item(0)))


def _count(values: Mapping[str, np.ndarray], name: str, default: int, most: int) -> int:
    array = values.get(name)
    value = int(array.item(0)) if array is not None and array.size else default
    if not 1 <= value <= most:
        raise RequestError(f"{name}: expected 1 to {most}, got {value}")
    return value


def _seeds(values: Mapping[str, np.ndarray], classes: int, most: int, variant: VideoVariant) -> Seeds | None:
    named = {name: values[name][0] for name in ("seed_ids", "seed_classes", "seed_masks") if _given(values, name)}
    if not named:
        return None
    if len(named) != 3:
        raise RequestError(f"seed_ids, seed_classes and seed_masks go together, got {', '.join(named)} alone")
    ids, owners, bits = named["seed_ids"], named["seed_classes"], named["seed_masks"]
    shape = (len(ids), variant.tracking.mask_size, variant.tracking.mask_row_bytes)
    if bits.shape != shape or owners.shape != ids.shape:
        raise RequestError(
            f"seed_masks: expected {list(shape)} and a class of each, packed as mask_bits of {variant.front_name} are,"
            f" got {list(bits.shape)} and {len(owners)} classes; masks of another resolution do not fit"
        )
    if len(ids) > most:
        raise RequestError(f"seed_ids: expected at most max_objects ({most}), got {len(ids)}")
    if len(set(ids.tolist())) < len(ids) or ids.min() < 0:
        raise RequestError(f"seed_ids: expected each id once, 0 or more, got {ids.tolist()[:20]}")
    if owners.min() < 0 or owners.max() >= min(classes, MAX_CLASSES):
        raise RequestError(f"seed_classes: expected indices into classes (0 to {classes - 1}), got {owners.tolist()}")
    empty = [int(n) for n, mask in zip(ids, bits, strict=True) if not mask.any()]
    if empty:
        raise RequestError(f"seed_masks: expected masks with at least one pixel, those of {empty} are empty")
    return Seeds(ids.astype(np.int64), owners.astype(np.int32), bits)
