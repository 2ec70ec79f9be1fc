"""Zoom: detection in two passes, the whole frame at a low resolution, then crops of it at a high one.

Small objects need a high resolution, but most of a frame is empty. The first pass uses a threshold so low that most of
its detections are only candidates; crops around these go to the expensive model. Crops are ordinary requests, so the
server batches those of all cameras together. Detections in a crop are mapped back to the frame; where both passes found
the same object, the second pass wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clients.detections import Detections
from clients.video.encode import to_jpeg

Box = tuple[float, float, float, float]
"""xyxy in 0..1 of the frame."""
Ask = Callable[[bytes], Awaitable[Detections]]
"""Sends a JPEG to the model of the second pass."""
SAME = 0.5
"""Boxes of one class with at least this intersection over union are one object."""
EDGE = 0.01
"""A box that is closer to a crop's edge than this share of the crop is cut off by it."""


@dataclass(frozen=True, slots=True)
class Zoom:
    """The second pass: `model` gets up to `crops` crops around candidates of `classes` (empty: all) with a score of at
    least `suspect`. A crop is `margin` times as wide and high as its candidate and not smaller than `least` of the
    frame's sides; candidates larger than `largest` of the frame's sides are large enough for the first pass.
    """

    model: str
    classes: tuple[str, ...] = ()
    suspect: float = 0.15
    crops: int = 4
    margin: float = 2.0
    least: float = 0.25
    largest: float = 0.3


def regions(found: Detections, zoom: Zoom) -> list[Box]:
    """The crops, best candidates first. A candidate that lies inside an earlier crop gets none of its own."""
    chosen: list[Box] = []
    for label, score, (x0, y0, x1, y1) in zip(found.labels, found.scores, found.boxes.tolist(), strict=True):
        if (zoom.classes and label not in zoom.classes) or score < zoom.suspect or max(x1 - x0, y1 - y0) > zoom.largest:
            continue
        if any(a <= x0 and b <= y0 and x1 <= c and y1 <= d for a, b, c, d in chosen):
            continue
        side = min(1.0, max(zoom.least, zoom.margin * (x1 - x0), zoom.margin * (y1 - y0)))
        left, upper = (min(max((a + b - side) / 2, 0.0), 1.0 - side) for a, b in ((x0, x1), (y0, y1)))
        chosen.append((left, upper, left + side, upper + side))
        if len(chosen) == zoom.crops:
            break
    return chosen


def crop(rgb: NDArray[np.uint8], region: Box) -> tuple[NDArray[np.uint8], Box]:
    """The pixels of a region of uint8 [H,W,3], and the region in whole pixels."""
    height, width = rgb.shape[:2]
    x0, y0 = int(region[0] * width), int(region[1] * height)
    x1, y1 = max(x0 + 1, round(region[2] * width)), max(y0 + 1, round(region[3] * height))
    return np.ascontiguousarray(rgb[y0:y1, x0:x1]), (x0 / width, y0 / height, x1 / width, y1 / height)


async def look_closer(rgb: NDArray[np.uint8], first: Detections, zoom: Zoom, ask: Ask) -> Detections:
    """`first`, merged with the detections in crops of the frame uint8 [H,W,3]. All crops are sent at once. Raises what
    `ask` raises."""
    where = regions(first, zoom)
    if not where:
        return first

    def cut() -> list[tuple[bytes, Box]]:
        return [(to_jpeg(pixels), exact) for pixels, exact in (crop(rgb, region) for region in where)]

    crops = await asyncio.to_thread(cut)
    seconds = await asyncio.gather(*(ask(jpeg) for jpeg, _ in crops))
    return merge(first, [(second, region) for second, (_, region) in zip(seconds, crops, strict=True)])


def merge(first: Detections, seconds: Sequence[tuple[Detections, Box]]) -> Detections:
    """Both passes in the frame's coordinates, highest score first. Objects that a crop's edge cuts off are left to the
    first pass; of boxes of one class that overlap by `SAME` the second pass's best is kept.
    """
    parts = [(_mapped(found, region), region) for found, region in seconds]
    everything = [first, *(found for found, _ in parts)]
    boxes = np.concatenate([found.boxes for found in everything])
    scores = np.concatenate([found.scores for found in everything])
    ids = np.concatenate([found.class_ids for found in everything])
    closer = np.arange(len(boxes)) >= len(first)
    keep: list[int] = []
    for i in np.lexsort((-scores, ~closer)):  # the second pass first, each pass best first
        rivals = [j for j in keep if ids[j] == ids[i]]
        if not rivals or iou(boxes[i], boxes[rivals]).max() < SAME:
            keep.append(int(i))
    keep.sort(key=lambda i: -scores[i])
    bits = first.mask_bits[:0]
    if keep and all(found.has_masks for found in everything):
        side = max(found.mask_size for found, _ in seconds)
        masks = np.concatenate([first.masks_at(side, side), *(_placed(found, region, side) for found, region in parts)])
        bits = np.packbits(masks[keep], axis=2)
    return replace(
        first,
        boxes=boxes[keep],
        scores=scores[keep],
        class_ids=ids[keep],
        presence=np.max([first.presence, *(found.presence for found, _ in seconds)], axis=0),
        stage_ms={s: ms + sum(found.stage_ms[s] for found, _ in seconds) for s, ms in first.stage_ms.items()},
        model="+".join(dict.fromkeys(found.model for found in everything)),
        latency_ms=first.latency_ms + max(found.latency_ms for found, _ in seconds),
        mask_bits=bits,
        mask_rle=(),
    )


def iou(box: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.floating]:
    """[N]: intersection over union of one box with each of [N,4], xyxy."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    area = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return shared / np.maximum(area, 1e-12)


def _mapped(found: Detections, region: Box) -> Detections:
    """The detections that no edge of the crop cuts off (the frame's own edges do not count), with boxes in the frame's
    coordinates."""
    low, high = np.array(region[:2], np.float32), np.array(region[2:], np.float32)
    cut_low = (found.boxes[:, :2] < EDGE) & (low > 0)
    cut_high = (found.boxes[:, 2:] > 1 - EDGE) & (high < 1)
    whole = found.where(~(cut_low | cut_high).any(axis=1))
    scale = high - low
    return replace(whole, boxes=whole.boxes * np.tile(scale, 2) + np.tile(low, 2))


def _placed(found: Detections, region: Box, side: int) -> NDArray[np.bool_]:
    """bool [D,side,side]: a crop's masks at their position in the whole frame."""
    x0, y0 = (int(v * side) for v in region[:2])
    x1, y1 = (max(low + 1, round(v * side)) for low, v in zip((x0, y0), region[2:], strict=True))
    masks = np.zeros((len(found), side, side), bool)
    for out, mask in zip(masks, found.masks, strict=True):
        small = Image.fromarray(mask.astype(np.uint8) * 255).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        out[y0:y1, x0:x1] = np.asarray(small) >= 128
    return masks
