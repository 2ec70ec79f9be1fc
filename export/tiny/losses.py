"""The training loss and its parts.

Queries are matched to objects layer by layer (Carion et al. 2020, DETR: the cheapest assignment under class, box and
overlap costs). Matched queries learn class, box and, in the last layer, mask; every pair learns presence. A dense map
of all named pixels connects text and image from the first step on: without it the text has no effect on the queries.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from export.tiny.dataset import Batch
from export.tiny.network import Predictions

WEIGHTS = {
    "class": 4.0,
    "l1": 5.0,
    "giou": 2.0,
    "presence": 2.0,
    "dice": 3.0,
    "mask": 10.0,
    "semantic": 10.0,
    "semantic_dice": 3.0,
}
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@dataclass(slots=True)
class Targets:
    """N pairs, G objects at most. boxes [N, G, 4] cxcywh; counts [N] objects named; index [N, G] their values in the
    index map; scene [N] the pair's image."""

    boxes: torch.Tensor
    counts: torch.Tensor
    index: torch.Tensor
    scene: torch.Tensor


def targets_of(batch: Batch) -> Targets:
    """The answers of a batch, one row a pair."""
    b, p, g = batch.answers.shape
    answers, named = batch.answers.clamp(min=0).flatten(1), (batch.answers >= 0)
    index = batch.instance_index.gather(1, answers).view(b, p, g) * named
    boxes = batch.instance_boxes.gather(1, answers[..., None].expand(-1, -1, 4))
    scene = torch.arange(b, device=answers.device).repeat_interleave(p)
    return Targets(boxes.view(b * p, g, 4), named.sum(-1).flatten(), index.flatten(0, 1), scene)


def _corners(box: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2


def _overlap(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection and union of cxcywh boxes."""
    (a_low, a_high), (b_low, b_high) = _corners(a), _corners(b)
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    return shared, a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared + 1e-6


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of cxcywh boxes [..., 4], broadcast."""
    shared, union = _overlap(a, b)
    return shared / union


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of cxcywh boxes [..., 4], broadcast (Rezatofighi et al. 2019): 1 for equal boxes, towards -1 for
    distant ones."""
    (a_low, a_high), (b_low, b_high) = _corners(a), _corners(b)
    shared, union = _overlap(a, b)
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1) + 1e-6
    return shared / union - (hull - union) / hull


@torch.no_grad()
def matching_costs(predictions: Predictions, targets: Targets) -> torch.Tensor:
    """Costs [L, N, Q, G] of assigning each object to each query."""
    p = predictions.logits.sigmoid()
    positive = -FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * torch.log(p + 1e-6)
    negative = -(1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * torch.log(1 - p + 1e-6)
    boxes, wanted = predictions.boxes[:, :, :, None], targets.boxes[None, :, None]
    costs = 2 * (positive - negative)[..., None] + 5 * (boxes - wanted).abs().sum(-1) - 2 * giou(boxes, wanted)
    return costs


def match(costs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The cheapest assignment for every layer and pair. costs [L, N, Q, G], counts [N]; returns rows (layer, pair,
    query, object), int64 [total, 4]."""
    rows = []
    for n in np.flatnonzero(counts):
        for layer in range(costs.shape[0]):
            query, target = linear_sum_assignment(costs[layer, n, :, : counts[n]])
            block = np.empty((len(query), 4), np.int64)
            block[:, 0], block[:, 1], block[:, 2], block[:, 3] = layer, n, query, target
            rows.append(block)
    return np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)


def _dice(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Dice loss of maps [n, pixels], one value a map."""
    p = logits.sigmoid()
    return 1 - (2 * (p * wanted).sum(1) + 1) / (p.sum(1) + wanted.sum(1) + 1)


def _focal(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Focal loss with wanted values anywhere in 0..1 (Li et al. 2020, quality focal loss)."""
    miss = (wanted - logits.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * miss**FOCAL_GAMMA


def losses(
    predictions: Predictions, targets: Targets, index_map: torch.Tensor, rows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The weighted sum "loss" and its parts, unweighted. `rows` from `match`, on the device; `index_map` uint8 [B, 2M,
    2M]."""
    layers = predictions.logits.shape[0]
    layer, pair, query, target = rows.unbind(1)
    named = targets.counts.sum().clamp(min=1).float()
    present = (targets.counts > 0).float()
    got, wanted = predictions.boxes[layer, pair, query], targets.boxes[pair, target]
    # The score should say how well the box fits, not only that there is something: precision at high overlaps depends
    # on that order.
    hits = torch.zeros_like(predictions.logits)
    hits[layer, pair, query] = iou(got, wanted).detach().sqrt()
    # Whether anything is there at all is for the presence token to learn: absent prompts do not lower queries' scores.
    parts = {"class": (_focal(predictions.logits, hits) * present[None, :, None]).sum() / named}
    parts["l1"] = (got - wanted).abs().sum() / named
    parts["giou"] = (1 - giou(got, wanted)).sum() / named
    everywhere = present.expand(layers, -1)
    presence = F.binary_cross_entropy_with_logits(predictions.presence_logits, everywhere, reduction="none")
    parts["presence"] = presence.mean(1).sum()

    last = layer == layers - 1
    pair, query, target = pair[last], query[last], target[last]
    logits = predictions.masks[pair, query].float().flatten(1)
    scene = targets.scene[pair]
    own = (index_map[scene] == targets.index[pair, target][:, None, None]).float()
    own = F.avg_pool2d(own[:, None], 2).flatten(1)  # the share of each cell that the object covers
    parts["mask"] = F.binary_cross_entropy_with_logits(logits, own, reduction="none").mean(1).sum() / named
    parts["dice"] = _dice(logits, own).sum() / named

    table = torch.zeros(len(targets.scene), 256, device=own.device)
    table.scatter_(1, targets.index, 1.0)
    table[:, 0] = 0.0  # padding pointed here, at the background
    union = table.gather(1, index_map.flatten(1).long()[targets.scene]).view(-1, 1, *index_map.shape[1:])
    union, dense = F.avg_pool2d(union, 2).flatten(1), predictions.semantic.flatten(1)
    parts["semantic"] = F.binary_cross_entropy_with_logits(dense, union)
    parts["semantic_dice"] = _dice(dense, union).mean()
    return {"loss": sum(WEIGHTS[name] * value for name, value in parts.items()), **parts}
