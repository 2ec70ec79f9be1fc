"""How far an artifact may be from the checkpoint it was made from, by precision: the numbers that the gate decides
by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What an artifact may differ by: `relative` is max|a-b| / max|b| of one output, `cosine` the least similarity of
    one output (flattened); of detections, `iou` is the least overlap of boxes and of masks, `score` the largest
    difference. A query whose reference score is within `margin` of the threshold may fall on either side of it, and so
    may a mask pixel whose reference logit is within `mask_margin` of zero: in a mask of thirty pixels a single
    undecided one would cost 0.03 of the overlap. For the same reason a box whose edges all lie within `box_margin` (in
    parts of the frame) of the reference's is as good as equal, however small it is."""

    relative: float
    cosine: float
    iou: float
    score: float
    margin: float
    mask_margin: float
    box_margin: float


LIMITS = {
    "fp32": Limits(
        relative=1e-4, cosine=0.999999, iou=0.998, score=1e-4, margin=1e-4, mask_margin=1e-3, box_margin=1e-5
    ),
    "fp16": Limits(
        relative=float("inf"), cosine=0.999, iou=0.98, score=0.03, margin=0.02, mask_margin=0.1, box_margin=2.5e-4
    ),
}
"""By precision of the artifact. 2.5e-4 of a frame is a quarter of a pixel at 1008."""
