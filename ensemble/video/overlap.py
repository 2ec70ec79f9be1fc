"""How packed masks cover one another: areas, intersections, and who keeps a pixel that several claim."""

from __future__ import annotations

import numpy as np

_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint8)
"""Set bits of each byte."""
PAIRS = 512
"""Pairs of masks that are compared at once."""


def areas(bits: np.ndarray) -> np.ndarray:
    """Pixels set, int64 [N], of masks uint8 [N,S,ceil(S/8)]."""
    return np.take(_SET, bits.reshape(len(bits), bits.shape[1] * bits.shape[2])).sum(1, dtype=np.int64)


def extents(bits: np.ndarray) -> np.ndarray:
    """Where masks [N,S,ceil(S/8)] lie: first row, row behind the last, first column, column behind the last, int64
    [N,4]; all 0 for an empty one."""
    found = np.zeros((len(bits), 4), np.int64)
    across = np.unpackbits(np.bitwise_or.reduce(bits, axis=1), axis=-1)
    for low, line in ((0, bits.any(2)), (2, across.astype(bool))):
        found[:, low] = line.argmax(1)
        found[:, low + 1] = (line.shape[1] - line[:, ::-1].argmax(1)) * line.any(1)
    return found


def iou(one: np.ndarray, other: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Intersection over union, float32 [N,K], of masks [N,S,ceil(S/8)] with [K,S,ceil(S/8)] for the pairs that are
    `wanted`, bool [N,K]; 0 for the others, and where both are empty."""
    shares = np.zeros((len(one), len(other)), np.float32)
    rows, columns = np.nonzero(wanted)
    if len(rows):
        first, second = extents(one)[rows], extents(other)[columns]
        near = ((first[:, ::2] < second[:, 1::2]) & (second[:, ::2] < first[:, 1::2])).all(1)
        rows, columns = rows[near], columns[near]  # most do not even meet
    for start in range(0, len(rows), PAIRS):
        n, k = rows[start : start + PAIRS], columns[start : start + PAIRS]
        shares[n, k] = areas(one[n] & other[k]) / areas(one[n] | other[k])
    return shares


def apart(bits: np.ndarray, strength: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What each mask keeps where masks of one group overlap: a pixel stays with the one of the greatest `strength` [N],
    of equal ones with the first."""
    kept = bits.copy()
    several, counts = np.unique(groups, return_counts=True)
    for group in several[counts > 1]:
        taken = np.zeros_like(bits[:1][0])
        for n in sorted(np.flatnonzero(groups == group), key=lambda n: (-strength[n], n)):
            kept[n] &= ~taken
            taken |= bits[n]
    return kept


def without_doubles(bits: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, most: float) -> np.ndarray:
    """Indices, best first, of detections that no better one of their class overlaps by an IoU above `most` (NMS)."""
    order = np.argsort(-scores, kind="stable")
    shares = iou(bits[order], bits[order], class_ids[order][:, None] == class_ids[order][None])
    kept: list[int] = []
    for n in range(len(order)):
        if not kept or shares[n, kept].max() <= most:
            kept.append(n)
    return order[kept]


def centre_and_size(bits: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean x and y of a mask's pixels [S,ceil(S/8)], and the side of a square of its area, in its own pixels."""
    rows, columns = np.nonzero(np.unpackbits(bits, axis=-1))
    return np.array([columns.mean(), rows.mean()]), float(np.sqrt(len(rows)))
