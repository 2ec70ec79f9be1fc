"""J and F, the measures of video object segmentation (Perazzi et al. 2016, DAVIS): the masks' intersection over union,
and the F measure of their boundaries."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 0.008  # how far boundary pixels may lie apart, over the frame's diagonal


def region(found: Tensor, wanted: Tensor) -> Tensor:
    """J, intersection over union [N]; masks bool [N, H, W]. Two empty masks agree: 1."""
    shared = (found & wanted).flatten(1).sum(1)
    union = (found | wanted).flatten(1).sum(1)
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


def edges(masks: Tensor) -> Tensor:
    """Boundary pixels, bool [N, H, W]: those that differ from the next to the right, below, or both."""
    padded = F.pad(masks[:, None].float(), (0, 1, 0, 1), mode="replicate")[:, 0] > 0.5
    here, right = padded[:, :-1, :-1], padded[:, :-1, 1:]
    below, across = padded[:, 1:, :-1], padded[:, 1:, 1:]
    return (here ^ right) | (here ^ below) | (here ^ across)


def boundary(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """F [N]: harmonic mean of the shares of boundary pixels that have one of the other mask's within `tolerance` of
    the diagonal; masks bool [N, H, W]. Two masks without boundary agree: 1."""
    radius = math.ceil(tolerance * math.hypot(*found.shape[1:]))
    reach = torch.arange(-radius, radius + 1, device=found.device)
    disk = (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).float()[None, None]
    grow = lambda edge: F.conv2d(edge[:, None].float(), disk, padding=radius)[:, 0] > 0.5  # noqa: E731
    ours, theirs = edges(found), edges(wanted)
    count = lambda pixels: pixels.flatten(1).sum(1).float()  # noqa: E731
    mine, other = count(ours), count(theirs)
    precision = count(ours & grow(theirs)) / mine.clamp(min=1)
    recall = count(theirs & grow(ours)) / other.clamp(min=1)
    both = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    return torch.where((mine == 0) & (other == 0), 1.0, both)
