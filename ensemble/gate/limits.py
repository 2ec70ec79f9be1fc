"""The limits of the gate: how far an artifact may be from the checkpoint that it was made from, by precision."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ensemble.spec import Variant


@dataclass(frozen=True, slots=True)
class Limits:
    """What an artifact may differ by.

    Of one output, `relative` is the largest max|a-b| / max|b| and `cosine` the lowest cosine of the flattened tensors.
    Of detections, `iou` is the lowest overlap of boxes and of masks, `score` the largest difference of scores. A query
    whose reference score is within `margin` of the threshold may fall on either side of it, and so may a mask pixel
    whose reference logit is within `mask_margin` of zero: in a mask of thirty pixels a single undecided one would cost
    0.03 of the overlap. For the same reason a box counts as equal, however small it is, if all its edges lie within
    `box_margin` (as a fraction of the frame) of the reference's."""

    relative: float
    cosine: float
    iou: float
    score: float
    margin: float
    mask_margin: float
    box_margin: float


LIMITS = {
    "fp32": Limits(
        relative=1e-4, cosine=0.999999, iou=0.998, score=2e-4, margin=1e-4, mask_margin=1e-3, box_margin=1e-5
    ),
    "fp16": Limits(
        relative=float("inf"), cosine=0.999, iou=0.98, score=0.03, margin=0.02, mask_margin=0.1, box_margin=2.5e-4
    ),
    "int8": Limits(
        relative=float("inf"), cosine=0.998, iou=0.95, score=0.1, margin=0.08, mask_margin=0.5, box_margin=1e-3
    ),
    "int8_fp16": Limits(
        relative=float("inf"), cosine=0.998, iou=0.95, score=0.12, margin=0.1, mask_margin=0.5, box_margin=1e-3
    ),
    "fp8": Limits(
        relative=float("inf"), cosine=0.995, iou=0.95, score=0.12, margin=0.1, mask_margin=0.5, box_margin=1e-3
    ),
}
"""By precision. In fp32, ONNX Runtime's scores differ by up to 1.2e-4 from PyTorch's where detections are the same, by
which products a processor has. 2.5e-4 of a frame is a quarter of a pixel at 1008. In fp8 the small checkpoint's vision
encoder reached cosines of 0.9989 and more, its detections an overlap of 0.989 and scores within 0.06; random weights of
the real size 0.9967 (16 drawn frames at 252 and 168; noise at 1008). In int8 its vision encoder and decoder reached
0.9998 and 0.9995."""
TRACKER_RELATIVE = 1e-5
"""Of a tracker's sub-models in fp32: closer, since what a step is off the next one remembers. ONNX Runtime's were at
most 2e-6 with random weights."""
IN_INT8 = ("vision_encoder", "decoder")
"""Sub-models whose linear layers are in INT8 in a variant of that precision: nine tenths of a frame's time on a
processor. The text encoder is run once a name, and the others have few products with constant weights."""
BESIDE_INT8 = {"int8": "fp32", "int8_fp16": "fp16"}
"""What the other sub-models of such a variant are in."""


def part_precision(variant: Variant, part: str) -> str:
    """Precision of one sub-model's artifact: of a variant in fp8, the vision encoder's linear layers are, the rest is
    fp16; of one in int8, those of `IN_INT8`, and the rest is fp32, or fp16 on a GPU."""
    if variant.precision in BESIDE_INT8:
        return variant.precision if part in IN_INT8 else BESIDE_INT8[variant.precision]
    return "fp16" if variant.precision == "fp8" and part != "vision_encoder" else variant.precision


def limits_of(variant: Variant, part: str | None = None) -> Limits:
    """The limits for one sub-model's artifact, or for what all of a variant's together detect."""
    precision = variant.precision if part is None else part_precision(variant, part)
    limits = LIMITS[precision]
    if precision == "fp32" and part in {model.part for model in variant.tracker_parts}:
        return replace(limits, relative=TRACKER_RELATIVE)
    return limits
