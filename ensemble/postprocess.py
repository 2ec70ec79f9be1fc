"""Detections from the decoder's outputs: scores, the choice of queries, and the packed masks of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask


@dataclass(slots=True)
class Detections:
    """What was found in one frame, best first. Boxes are xyxy in 0..1 of the frame; masks are packed bits, most
    significant bit first."""

    boxes: np.ndarray  # float32 [D,4]
    scores: np.ndarray  # float32 [D]
    class_ids: np.ndarray  # int32 [D]
    presence: np.ndarray  # float32 [classes]
    mask_bits: np.ndarray  # uint8 [D,4p,ceil(4p/8)], D = 0 where no masks were asked for


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32. Written with tanh, which does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float32)))


def scores(pred_logits: np.ndarray, presence_logits: np.ndarray) -> np.ndarray:
    """Score of each query, [N,Q]: sigmoid(logit) times sigmoid(presence of the class), as in SAM3's own
    post-processing."""
    return sigmoid(pred_logits) * sigmoid(presence_logits)


def select(pair_scores: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """Indices of at most `limit` queries of one pair with a score above `threshold`, best first. Raises nothing; NaN is
    never above."""
    chosen = np.flatnonzero(pair_scores > threshold)
    return chosen[np.argsort(-pair_scores[chosen], kind="stable")][:limit]


def best_first(parts: Sequence[Detections], presence: np.ndarray, limit: int, empty_masks: np.ndarray) -> Detections:
    """One frame's `Detections` from those of its classes: the best `limit`, ties in class order. Without parts
    `empty_masks` gives the mask shape."""
    if not parts:
        return Detections(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), presence, empty_masks
        )
    boxes, values, ids, bits = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("boxes", "scores", "class_ids", "mask_bits")
    )
    order = np.argsort(-values, kind="stable")[:limit]
    return Detections(boxes[order], values[order], ids[order], presence, bits[order] if len(bits) else empty_masks)


def unpack(mask_bits: np.ndarray, size: int) -> np.ndarray:
    """bool [D,size,size] from packed rows uint8 [D,size,ceil(size/8)]."""
    return np.unpackbits(mask_bits, axis=-1, count=size).astype(bool)


def to_rle(mask_bits: np.ndarray, size: int) -> list[bytes]:
    """COCO compressed RLE counts of each mask, size [size, size]."""
    if not len(mask_bits):
        return []
    columns = np.asfortranarray(unpack(mask_bits, size).transpose(1, 2, 0).astype(np.uint8))
    return [rle["counts"] for rle in coco_mask.encode(columns)]
