"""The tracker's training loss, SAM 2's: focal and dice on the best of three masks, the error of the predicted IoU on
all three, and whether the object is in the frame. Masks count only where the object can be seen."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = {"focal": 20.0, "dice": 1.0, "iou": 1.0, "score": 1.0}
ALPHA, GAMMA = 0.25, 2.0
LEAST_PIXELS = 4  # of a mask at 8p; below, an object counts as hidden


@dataclass(slots=True)
class Losses:
    """`total` and the parts, scalars; `overlap`: mean IoU of the chosen masks, `hits`: share of right scores."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    score: Tensor
    overlap: Tensor
    hits: Tensor


def visible(masks: Tensor) -> Tensor:
    """Whether enough of an object can be seen, bool [...]; masks bool [..., 8p, 8p]."""
    return masks.flatten(-2).sum(-1) >= LEAST_PIXELS


def mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Focal (Lin et al. 2017, mean over the pixels), dice loss, and the actual IoU without gradient, each [E, 3];
    logits float [E, 3, h, w], masks float [E, 1, h, w]."""
    cross = F.binary_cross_entropy_with_logits(logits, masks.expand_as(logits), reduction="none")
    p = logits.sigmoid()
    wrong = p + masks - 2 * p * masks  # 1 - the probability given to the truth
    weight = ALPHA * masks + (1 - ALPHA) * (1 - masks)
    focal = (weight * cross * wrong**GAMMA).flatten(2).mean(2)
    both = (p * masks).flatten(2).sum(2)
    dice = 1 - (2 * both + 1) / (p.flatten(2).sum(2) + masks.flatten(2).sum(2) + 1)
    with torch.no_grad():
        found, wanted = logits > 0, masks > 0.5
        shared = (found & wanted).flatten(2).sum(2)
        iou = shared / (found | wanted).flatten(2).sum(2).clamp(min=1)
    return focal, dice, iou


def losses(logits: Tensor, ious: Tensor, scores: Tensor, masks: Tensor, real: Tensor, shared: float) -> Losses:
    """The loss of E objects on a frame each.

    Args:
        logits: [E, 3, 4p, 4p].
        ious: predicted, [E, 3].
        scores: logits of being in the frame, [E].
        masks: bool [E, 8p, 8p], what can be seen.
        real: bool [E]; the others fill the batch and count nothing.
        shared: share of the mask losses that falls on all three masks alike. With none from the start, each of them
            learns to cover one object of the frame, whichever was asked for.
    """
    side = masks.shape[-1]
    there = visible(masks)
    logits = F.interpolate(logits.float(), size=(side, side), mode="bilinear")
    focal, dice, actual = mask_losses(logits, masks[:, None].float())
    chosen = (WEIGHTS["focal"] * focal + WEIGHTS["dice"] * dice).argmin(1, keepdim=True)
    shown, counted = (there & real).float(), real.float()
    mean = lambda values, weights: (values * weights).sum() / weights.sum().clamp(min=1)  # noqa: E731
    spread = lambda loss: (1 - shared) * loss.gather(1, chosen)[:, 0] + shared * loss.mean(1)  # noqa: E731
    parts = {
        "focal": mean(spread(focal), shown),
        "dice": mean(spread(dice), shown),
        "iou": mean((ious.float() - actual).abs().mean(1), shown),
        "score": mean(F.binary_cross_entropy_with_logits(scores.float(), there.float(), reduction="none"), counted),
    }
    total = torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()
    taken = actual.gather(1, ious.argmax(1, keepdim=True))[:, 0]
    hits = mean(((scores > 0) == there).float(), counted)
    return Losses(total, **parts, overlap=mean(taken, shown), hits=hits)
