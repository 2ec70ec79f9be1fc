"""The loss of a student beside its teacher: the pyramid's features, the DETR encoder's tokens, and for every decoder
layer the scores, boxes and presence of every query, with masks of the queries that find something.

A student that is made of its teacher keeps the roles of the queries, so queries are compared one with one and nothing
is matched. Cross-entropies have the teacher's own entropy taken off: every part is 0 where both say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam3Model

from export.tiny.dataset import Batch, normalised
from export.tiny.losses import giou
from export.tiny.network import Positions, Predictions, answer, pyramid

WEIGHTS = {
    "features": 2.0,
    "memory": 2.0,
    "class": 4.0,
    "l1": 5.0,
    "giou": 2.0,
    "presence": 2.0,
    "dice": 10.0,
    "mask": 100.0,
    "semantic": 10.0,
    "semantic_dice": 3.0,
}
"""Those of the training (`export/tiny/losses.py`) and two more; masks weigh more, because near the teacher's there is
little left of their losses."""
MASKS = 4
"""Queries of a pair whose masks are compared: the teacher's highest scores."""
FLOOR = 0.001
"""Weight of a query's box besides its score: boxes of what is not found matter little, but not nothing."""


@dataclass(slots=True)
class Outputs:
    """What a model makes of a batch: three levels of features, finest first, [B, C, h, w], and its predictions."""

    levels: list[Tensor]
    predictions: Predictions


def outputs(model: Sam3Model, batch: Batch, positions: Positions) -> Outputs:
    """All pairs of a batch through a model that is set to the batch's resolution."""
    levels = pyramid(model, normalised(batch.pixels))
    return Outputs(levels, answer(model, batch, levels, positions))


def distillation(student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
    """The weighted sum "loss" and its parts, unweighted. Where the student's features have another width or its decoder
    fewer layers than the teacher's, features are left out and layers compared with those at the same share of the
    depth."""
    mine, theirs = student.predictions, teacher.predictions
    layers = _same_depth(mine.logits.shape[0], theirs.logits.shape[0])
    probability = theirs.logits[layers].sigmoid()  # [L,N,Q]
    found = probability * theirs.presence_logits[layers].sigmoid()[..., None]
    weight = found + FLOOR
    boxes = theirs.boxes[layers]
    parts: dict[str, Tensor] = {}
    if student.levels[0].shape == teacher.levels[0].shape:
        parts["features"] = sum(map(_distance, student.levels, teacher.levels)) / len(teacher.levels)
        parts["memory"] = _distance(mine.memory, theirs.memory)
    # As in training: presence says whether there is anything, scores only say what fits best where there is.
    parts["class"] = (_excess(mine.logits, probability) * weight.amax(2, keepdim=True)).sum() / found[-1].sum().clamp(1)
    parts["l1"] = _mean((mine.boxes - boxes).abs().sum(-1), weight)
    parts["giou"] = _mean(1 - giou(mine.boxes, boxes), weight)
    parts["presence"] = _excess(mine.presence_logits, theirs.presence_logits[layers].sigmoid()).mean(1).sum()
    best = found[-1].topk(min(MASKS, found.shape[2]), dim=1)  # [N,MASKS]
    got, wanted = _rows(mine.masks, best.indices), _rows(theirs.masks, best.indices).sigmoid()
    parts["mask"] = _mean(_excess(got, wanted).mean(2), best.values)
    parts["dice"] = _mean(_overlap_loss(got, wanted), best.values)
    got, wanted = mine.semantic.flatten(1), theirs.semantic.flatten(1).sigmoid()
    parts["semantic"] = _excess(got, wanted).mean()
    parts["semantic_dice"] = _overlap_loss(got[:, None], wanted[:, None]).mean()
    return {"loss": sum(WEIGHTS[name] * value for name, value in parts.items()), **parts}


def _same_depth(mine: int, theirs: int) -> list[int]:
    return [-(-(n + 1) * theirs // mine) - 1 for n in range(mine)]


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference in shares of b's variance."""
    a, b = a.float(), b.float()
    return F.mse_loss(a, b) / b.var().clamp(1e-6)


def _excess(logits: Tensor, probability: Tensor) -> Tensor:
    """Cross-entropy above the least possible one, elementwise: 0 where both are the same, smoothly."""
    least = -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability))
    return F.binary_cross_entropy_with_logits(logits.float(), probability, reduction="none") - least


def _overlap_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Dice loss of maps [N, n, pixels] with squares below (Milletari et al. 2016, V-Net): [N, n]. It is 0 for equal
    maps alone; the usual one would reward edges that are sharper than the teacher's, and masks are enlarged later."""
    p = logits.float().sigmoid()
    return 1 - (2 * (p * wanted).sum(2) + 1) / (p.square().sum(2) + wanted.square().sum(2) + 1)


def _rows(masks: Tensor, queries: Tensor) -> Tensor:
    """The masks [N, Q, M, M] of these queries [N, n]: fp32 [N, n, M*M]."""
    flat = masks.flatten(2)
    return flat.gather(1, queries[..., None].expand(-1, -1, flat.shape[2])).float()


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean; with layers in front, the sum of the layers' means."""
    if values.ndim == 2:
        return (values * weight).sum() / weight.sum().clamp(1e-6)
    return ((values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(1e-6)).sum()
