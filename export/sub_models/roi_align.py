"""RoIAlign (He et al., Mask R-CNN, 2017, section 3) as two matrix products: the mean of an image's features in each
cell of a grid over a box.

torchvision's operator takes ceil(side / cells) samples of a cell along each side, each by bilinear interpolation. Both
the interpolation and the mean are products of a row's and a column's weights, so a box is pooled by a matrix of row
weights from the left and one of column weights from the right. The result is torchvision's with its default arguments
(`sampling_ratio` -1, `aligned` false); here it consists of operators that every engine has.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(image: Tensor, image_index: Tensor, corners: Tensor, cells: int) -> Tensor:
    """`image` [B,p,p,C], `image_index` int32 [N], `corners` [N,K,4] (x, y, x, y in pixels of the map, of the dtype of
    `image`) -> [N,K,cells,cells,C]."""
    size, channels = image.shape[-2:]
    x_start, y_start, x_end, y_end = corners.unbind(-1)
    rows = cell_weights(y_start, y_end, cells, size).flatten(1, 2)  # [N,K*cells,p]
    columns = cell_weights(x_start, x_end, cells, size).unsqueeze(2)  # [N,K,1,cells,p]
    pooled = rows @ image.flatten(2).index_select(0, image_index)  # [N,K*cells,p*C]
    return columns @ pooled.unflatten(1, (-1, cells)).unflatten(3, (size, channels))


def cell_weights(start: Tensor, end: Tensor, cells: int, size: int) -> Tensor:
    """What each of `size` pixels adds to each cell of boxes from `start` to `end` [...] (pixels): [...,cells,size].

    A box is at least one pixel long; one of more than twice the map gets the samples of one of twice the map. Samples
    more than a pixel outside the map count as zeros, those nearer by as the map's edge.
    """
    dtype, device = start.dtype, start.device
    side = (end - start).clamp(min=1.0)[..., None, None]
    cell = torch.arange(cells, dtype=dtype, device=device)[:, None]
    sample = torch.arange(2 * size // cells + 1, dtype=dtype, device=device)
    used = (sample * cells < side).to(dtype)  # the first ceil(side / cells), without a division that may round up
    count = used.sum(-1, keepdim=True)
    step = side / cells
    position = start[..., None, None] + cell * step + (sample + 0.5) * step / count  # [...,cells,samples]
    counted = used * ((position >= -1.0) & (position <= size)).to(dtype)
    distance = position.clamp(0.0, size - 1.0)[..., None] - torch.arange(size, dtype=dtype, device=device)
    shares = (1.0 - distance.abs()).clamp(min=0.0)  # [...,cells,samples,size]
    return (shares * counted[..., None]).sum(-2) / count
