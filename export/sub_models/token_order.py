"""The order of the image transformer's tokens, window by window, and the way from a map to it and back.

In this order a window is a run of tokens and needs no partition. Where windows do not fill the map, those at the right
and the bottom have fewer tokens; SAM3 pads them, which `padding` describes for attention alone.
"""

from __future__ import annotations

from itertools import accumulate, product
from math import prod

import torch
from torch import Tensor


class TokenOrder:
    """`tiles` are the windows of a p x p map: row and column of the first token, rows and columns that lie on the map.
    `filled`: all have all tokens."""

    def __init__(self, patches: int, window: int) -> None:
        self.patches, self.window = patches, window
        self.filled = patches % window == 0
        sides = [(start, min(window, patches - start)) for start in range(0, patches, window)]
        self.side = len(sides)  # windows a side
        self.tiles = [(y, x, rows, columns) for (y, rows), (x, columns) in product(sides, sides)]

    def raster(self) -> Tensor:
        """Position in raster order of each token in this order: [p*p]."""
        grid = torch.arange(self.patches**2).reshape(self.patches, self.patches)
        return torch.cat([grid[y : y + rows, x : x + columns].flatten() for y, x, rows, columns in self.tiles])

    def places(self) -> Tensor:
        """Position in its window, which is `window` wide, of each token: [p*p]."""
        grid = self._window_grid()
        return torch.cat([grid[:rows, :columns].flatten() for _, _, rows, columns in self.tiles])

    def padding(self) -> tuple[Tensor, list[tuple[int, int, int, int]]]:
        """Positions in their windows of padded tokens [P], and of each window (first token, tokens, first padded,
        padded). Windows of the same shape have the same padded tokens."""
        shapes = list(dict.fromkeys((rows, columns) for _, _, rows, columns in self.tiles))
        places = []
        for rows, columns in shapes:
            outside = torch.ones(self.window, self.window, dtype=torch.bool)
            outside[:rows, :columns] = False
            places.append(self._window_grid()[outside])
        begins = dict(zip(shapes, accumulate((len(p) for p in places), initial=0), strict=False))
        runs, first = [], 0
        for _, _, rows, columns in self.tiles:
            runs.append((first, rows * columns, begins[rows, columns], self.window**2 - rows * columns))
            first += rows * columns
        return torch.cat(places), runs

    def slots(self) -> tuple[Tensor, Tensor]:
        """For windows that are padded and one after another: the place of each token [p*p], and the token in each place
        [windows*w*w], p*p for padding."""
        lengths = torch.tensor([rows * columns for _, _, rows, columns in self.tiles])
        own = torch.arange(len(lengths)).repeat_interleave(lengths) * self.window**2 + self.places()
        held = torch.full((len(lengths) * self.window**2,), self.patches**2)
        held[own] = torch.arange(self.patches**2)
        return own, held

    def _window_grid(self) -> Tensor:
        return torch.arange(self.window**2).reshape(self.window, self.window)

    def patches_of(self, pixels: Tensor, patch: int) -> Tensor:
        """[B,3,R,R] -> [B,p*p,3*patch*patch] in this order."""
        if self.filled:
            g, w = self.side, self.window
            tiles = pixels.reshape(-1, 3, g, w, patch, g, w, patch)  # B 3 gy wy y gx wx x
            tiles = tiles.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B gy gx wy wx 3 y x
            return tiles.reshape(-1, self.patches**2, 3 * patch * patch)
        rows = []
        for y, x, height, width in self.tiles:
            tile = pixels[:, :, y * patch : (y + height) * patch, x * patch : (x + width) * patch]
            tile = tile.reshape(-1, 3, height, patch, width, patch).permute(0, 2, 4, 1, 3, 5)  # B wy wx 3 y x
            rows.append(tile.reshape(-1, height * width, 3 * patch * patch))
        return torch.cat(rows, 1)

    def to_map(self, x: Tensor, doublings: int) -> Tensor:
        """Tokens [B,p*p,4**doublings*C], each holding its square of pixels (coarse to fine), -> map [B,C,s,s], s =
        p*2**doublings, channels last in memory."""
        if self.filled:
            x = _squares(x, (self.side, self.side, self.window, self.window), doublings)
        else:
            tiles = []
            first = 0
            for _, _, rows, columns in self.tiles:
                tiles.append(_squares(x[:, first : first + rows * columns], (rows, columns), doublings))
                first += rows * columns
            lines = [torch.cat(tiles[i : i + self.side], 2) for i in range(0, len(tiles), self.side)]
            x = torch.cat(lines, 1)
        return x.permute(0, 3, 1, 2)


def _squares(x: Tensor, sides: tuple[int, ...], doublings: int) -> Tensor:
    """Tokens [B,n,4**doublings*C] in rows and columns of `sides` (coarse to fine, rows before columns), ->
    [B,height,width,C]."""
    pairs = [*sides, *[2] * (2 * doublings)]
    x = x.reshape(-1, *pairs, x.shape[-1] // 4**doublings)
    rows = range(1, 1 + len(pairs), 2)
    x = x.permute(0, *rows, *(r + 1 for r in rows), x.ndim - 1)  # B, rows coarse to fine, columns coarse to fine, C
    return x.reshape(x.shape[0], prod(pairs[::2]), prod(pairs[1::2]), x.shape[-1])
