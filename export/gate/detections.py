"""The comparison of two runs' detections over the same pairs: how many agree, and how closely.

Queries have fixed numbers, so the same query of the same pair is the same detection, whatever order nearly equal scores
put them in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.gate.limits import Limits
from export.gate.reference import Arrays, scores

THRESHOLD = 0.5
"""The usual score above which a query is a detection."""


@dataclass(frozen=True, slots=True)
class DetectionCheck:
    """Detections of the whole chain against the reference's: how many were expected, found and missed, and how far off
    those are that were found."""

    threshold: float
    expected: int
    matched: int
    missing: int
    unexpected: int
    borderline: int  # on the other side of the threshold, but within the margin
    box_iou: float  # the lowest of those matched
    mask_iou: float
    score_difference: float  # the largest of those matched

    def failures(self, limits: Limits) -> list[str]:
        found = []
        if self.missing or self.unexpected:
            found.append(
                f"detections: {self.missing} of {self.expected} missing, {self.unexpected} unexpected at threshold"
                f" {self.threshold:.3f}"
            )
        for name, value in (("box", self.box_iou), ("mask", self.mask_iou)):
            if not (value >= limits.iou):
                found.append(f"detections: least {name} IoU is {value:.4f}, expected at least {limits.iou}")
        if not (self.score_difference <= limits.score):
            found.append(
                f"detections: scores differ by up to {self.score_difference:.4f}, expected at most {limits.score}"
            )
        return found


NO_DETECTIONS = DetectionCheck(0.0, 0, 0, 0, 0, 0, box_iou=1.0, mask_iou=1.0, score_difference=0.0)
"""What is known of detections where none were looked for."""


def check_detections(
    found: Arrays,
    truth: Arrays,
    picks: np.ndarray,
    threshold: float,
    margin: float,
    mask_margin: float = 0.0,
    box_margin: float = 0.0,
) -> DetectionCheck:
    """Compares detections query by query, masks for the queries `picks` [N,T] only. The margins are those of
    `Limits`."""
    score, reference = scores(found), scores(truth)
    here, there = score >= threshold, reference >= threshold
    close = np.abs(reference - threshold) <= margin
    both = here & there
    ours, theirs = (outputs["pred_boxes"].astype(np.float64)[both] for outputs in (found, truth))
    boxes = np.where((np.abs(ours - theirs) <= box_margin).all(1), 1.0, box_iou(ours, theirs))
    picked = np.take_along_axis(both, picks, 1)  # [N,T]
    mask_logits = np.take_along_axis(truth["mask_logits"], picks[..., None, None], 1)
    decided = np.abs(mask_logits[picked]) >= mask_margin
    masks = mask_iou((found["mask_logits"][picked] > 0) & decided, (mask_logits[picked] > 0) & decided)
    return DetectionCheck(
        threshold=threshold,
        expected=int(there.sum()),
        matched=int(both.sum()),
        missing=int((there & ~here & ~close).sum()),
        unexpected=int((here & ~there & ~close).sum()),
        borderline=int(((here != there) & close).sum()),
        box_iou=float(boxes.min(initial=1.0)),
        mask_iou=float(masks.min(initial=1.0)),
        score_difference=float(np.abs(score - reference)[both].max(initial=0.0)),
    )


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of boxes xyxy [D,4] row by row -> [D]."""
    inner = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    outer = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner
    return np.where(outer > 0, inner / np.where(outer > 0, outer, 1), 1.0)


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of masks bool [D,H,W] row by row -> [D]; two empty masks overlap fully."""
    inner, outer = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return np.where(outer > 0, inner / np.where(outer > 0, outer, 1), 1.0)


def threshold_of(truth: Arrays) -> float:
    """The usual threshold where a score reaches it; otherwise the middle of the widest gap among the upper quarter of
    all scores, so that detections are compared even of a checkpoint that finds nothing in the gate's frames."""
    values = np.sort(scores(truth).ravel())
    if values[-1] >= THRESHOLD:
        return THRESHOLD
    upper = values[len(values) * 3 // 4 :]
    gap = int(np.argmax(np.diff(upper))) if len(upper) > 1 else 0
    return float(upper[gap : gap + 2].mean())


def merged(checks: list[DetectionCheck]) -> DetectionCheck:
    """The checks of several samples as one."""
    counted = ("expected", "matched", "missing", "unexpected", "borderline")
    total = {name: sum(getattr(c, name) for c in checks) for name in counted}
    return DetectionCheck(
        threshold=min(c.threshold for c in checks),
        **total,
        box_iou=min(c.box_iou for c in checks),
        mask_iou=min(c.mask_iou for c in checks),
        score_difference=max(c.score_difference for c in checks),
    )
