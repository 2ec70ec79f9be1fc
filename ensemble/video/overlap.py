"""How packed masks cover one another: areas, intersections, and who keeps a pixel that several claim."""

from __future__ import annotations

import numpy as np

_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint8)
"""Set bits of each byte."""


def areas(bits: np.ndarray) -> np.ndarray:
    """Pixels set, int64 [N], of masks uint8 [N,S,ceil(S/8)]."""
    return _SET[bits].sum((1, 2), dtype=np.int64)


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union, float32 [N,K], of masks [N,S,ceil(S/8)] with [K,S,ceil(S/8)]; 0 where both are empty."""
    flat = (mask.reshape(len(mask), mask.shape[1] * mask.shape[2]) for mask in (one, other))
    first, second = (np.unpackbits(mask, axis=1).astype(np.float32) for mask in flat)
    common = first @ second.T  # exact: less than 2**24 pixels
    union = first.sum(1)[:, None] + second.sum(1)[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def apart(bits: np.ndarray, strength: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What each mask keeps where masks of one group overlap: a pixel stays with the one of the greatest `strength` [N],
    of equal ones with the first."""
    kept = bits.copy()
    for group in np.unique(groups):
        taken = np.zeros_like(bits[:1][0])
        for n in sorted(np.flatnonzero(groups == group), key=lambda n: (-strength[n], n)):
            kept[n] &= ~taken
            taken |= bits[n]
    return kept


def without_doubles(bits: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, most: float) -> np.ndarray:
    """Indices, best first, of detections that no better one of their class overlaps by an IoU above `most` (NMS)."""
    order = np.argsort(-scores, kind="stable")
    shares = iou(bits[order], bits[order]) * (class_ids[order][:, None] == class_ids[order][None])
    kept: list[int] = []
    for n in range(len(order)):
        if not kept or shares[n, kept].max() <= most:
            kept.append(n)
    return order[kept]


def centre_and_size(bits: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean x and y of a mask's pixels [S,ceil(S/8)], and the side of a square of its area, in its own pixels."""
    rows, columns = np.nonzero(np.unpackbits(bits, axis=-1))
    return np.array([columns.mean(), rows.mean()]), float(np.sqrt(len(rows)))
