"""The inputs and outputs of SAM3's tracker: four sub-models that carry objects from frame to frame of a video.

They are functions without a memory of their own: what an object remembers is passed in and handed out, for N objects of
B frames in one call, which may belong to different videos (`image_index` [N] says whose frame each one reads).
`Variant` in `ensemble/spec.py` hands them out where the variant has a tracker. Standard library only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensemble.records import Axis, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from ensemble.spec import Tracker, Variant

CONDITIONING_MAPS = 4
"""Memory maps that an object keeps of frames in which its mask was given; each has a pointer as well."""
RECENT_MAPS = 6
"""Memory maps that an object keeps of the last frames."""
RECENT_POINTERS = 15
"""Pointers that an object keeps of the last frames."""
MEMORY_WIDTH = 64
"""Channels of a memory map, in every SAM3."""
EMPTY_AGE = -1
"""Age of a memory map or a pointer that is not there; its values are not looked at, but must be finite."""


def sizes(v: Variant) -> Tracker:
    """The tracker's sizes. Raises ValueError for a variant that has none."""
    if v.tracker is None:
        raise ValueError(
            f"{v.front_name} has no tracker: expected a repository that was written with sam3-export --video, got one"
            " for pictures alone"
        )
    return v.tracker


def tracker_axes(v: Variant) -> dict[str, Axis]:
    """How many objects, memory maps and pointers a call may have."""
    maps, pointers = CONDITIONING_MAPS + RECENT_MAPS, CONDITIONING_MAPS + RECENT_POINTERS
    most = sizes(v).max_objects
    return {
        "objects": Axis("objects", 1, min(4, most), most),
        "maps": Axis("maps", 1, 7, maps),
        "pointers": Axis("pointers", 1, 16, pointers),
    }


def hidden(v: Variant) -> TensorSpec:
    """What the vision encoder makes for the tracker: tokens of the image transformer, row by row."""
    return TensorSpec("hidden", v.float_dtype, (v.axes["images"], v.patches**2, sizes(v).trunk_size), host=False)


def tracker_neck(v: Variant) -> ModelSpec:
    """Tokens of the image transformer -> the tracker's own feature pyramid, and the first layer's self-attention, which
    is the same for all objects of a frame."""
    return ModelSpec(v.model_name("tracker_neck"), "tracker_neck", (hidden(v),), _features(v, "012x"))


def tracker_step(v: Variant) -> ModelSpec:
    """One frame further: what each object remembers of earlier frames -> where it is in this one.

    `memory_age` is 0 for the map of a conditioning frame, 1 to 6 for that of so many frames ago; `pointer_age` is in
    frames, of conditioning frames too; both are -1 where there is none. Each object has at least one map and one
    pointer. `mask_bits` are the logits above 0, packed along x, most significant bit first; an object with
    `track_score` (a logit) of 0 or less is not in the frame, and its mask is empty. `track_iou` is the mask's quality
    as the tracker guesses it, 0 to 1.
    """
    n, m, p = (tracker_axes(v)[name] for name in ("objects", "maps", "pointers"))
    c, f = sizes(v).hidden_size, v.float_dtype
    return ModelSpec(
        v.model_name("tracker_step"),
        "tracker_step",
        inputs=(
            *_features(v, "01x"),
            TensorSpec("image_index", "INT32", (n,)),
            TensorSpec("memory", f, (n, m, v.patches**2, MEMORY_WIDTH), host=False),
            TensorSpec("memory_age", "INT32", (n, m)),
            TensorSpec("pointers", f, (n, p, c), host=False),
            TensorSpec("pointer_age", "FP32", (n, p)),
        ),
        outputs=(
            _mask_logits(v, n),
            _packed("mask_bits", v, n, host=False),  # read by the pipeline, of all calls of a batch at once
            TensorSpec("track_score", "FP32", (n,), host=False),
            TensorSpec("track_iou", "FP32", (n,), host=False),
            TensorSpec("pointer", f, (n, c), host=False),
        ),
    )


def memory_encoder(v: Variant) -> ModelSpec:
    """What an object looks like in this frame, for its memory.

    `keep` are the pixels, packed as `mask_bits` are, that stay the object's where several overlap; the logits of the
    others become -10 at most. `hard` is 1 for masks that were given: they count as they are, not as probabilities.
    `there` is 0 for objects that are not in the frame.
    """
    n = tracker_axes(v)["objects"]
    return ModelSpec(
        v.model_name("memory_encoder"),
        "memory_encoder",
        inputs=(
            *_features(v, "2"),
            TensorSpec("image_index", "INT32", (n,)),
            _mask_logits(v, n),
            _packed("keep", v, n),
            TensorSpec("hard", "INT32", (n,)),
            TensorSpec("there", "INT32", (n,)),
        ),
        outputs=(TensorSpec("memory", v.float_dtype, (n, v.patches**2, MEMORY_WIDTH), host=False),),
    )


def tracker_seed(v: Variant) -> ModelSpec:
    """Objects whose masks are given -> their pointers, and those masks as logits, +10 inside and -10 outside."""
    n = tracker_axes(v)["objects"]
    return ModelSpec(
        v.model_name("tracker_seed"),
        "tracker_seed",
        inputs=(*_features(v, "012"), TensorSpec("image_index", "INT32", (n,)), _packed("mask_bits", v, n)),
        outputs=(
            TensorSpec("pointer", v.float_dtype, (n, sizes(v).hidden_size), host=False),
            _mask_logits(v, n),
        ),
    )


def _features(v: Variant, which: str) -> tuple[TensorSpec, ...]:
    """Maps of the tracker's pyramid, and `x`, the tokens behind the first self-attention."""
    b, c, p = v.axes["images"], sizes(v).hidden_size, v.patches
    dims = {
        "0": (b, c // 8, 4 * p, 4 * p),
        "1": (b, c // 4, 2 * p, 2 * p),
        "2": (b, c, p, p),
        "x": (b, p * p, c),
    }
    return tuple(TensorSpec(f"track_{name}", v.float_dtype, dims[name], host=False) for name in which)


def _mask_logits(v: Variant, objects: Axis) -> TensorSpec:
    return TensorSpec("mask_logits", v.float_dtype, (objects, v.mask_size, v.mask_size), host=False)


def _packed(name: str, v: Variant, objects: Axis, host: bool = True) -> TensorSpec:
    return TensorSpec(name, "UINT8", (objects, v.mask_size, v.mask_row_bytes), host=host)
