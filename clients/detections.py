"""`Detections`: the labelled boxes, scores and masks that were found in one frame, and how long that took.

Boxes and masks convert to pixels, boolean arrays of any size, COCO records and `supervision.Detections`. Masks stay
packed as they were sent until someone reads them, since most frames are only counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, eq=False)
class Detections:
    """D detections of one frame, highest score first.

    `boxes` float32 [D,4] xyxy in 0..1 of the frame; `scores` float32 [D]; `class_ids` int32 [D] index `classes`, the
    names of the request; `presence` float32 [C] is the probability that each class is in the frame at all; `frame_size`
    is (height, width) in pixels; `stage_ms` the server's milliseconds by stage; `batch` how many frames shared the
    server's execution; `latency_ms` the round trip as the client measured it. Masks are `mask_size` pixels a side,
    whatever the frame's shape: packed bits uint8 [D, mask_size, row bytes] or COCO counts, as the request's
    `mask_format` says.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    classes: tuple[str, ...]
    presence: NDArray[np.float32]
    frame_size: tuple[int, int]
    stage_ms: dict[str, float]
    batch: int
    model: str
    latency_ms: float
    mask_bits: NDArray[np.uint8]
    mask_rle: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        about = f"frame {self.frame_size[1]}x{self.frame_size[0]}, {self.latency_ms:.1f} ms"
        return f"{type(self).__name__}({self.summary()}; {about})"

    @property
    def labels(self) -> tuple[str, ...]:
        """The class name of each detection."""
        return tuple(self.classes[i] for i in self.class_ids)

    @property
    def boxes_in_pixels(self) -> NDArray[np.float32]:
        """float32 [D,4], xyxy in pixels of the frame."""
        height, width = self.frame_size
        return self.boxes * np.array([width, height, width, height], np.float32)

    def summary(self) -> str:
        """Counts by class: `2 red circle, 1 blue square`, or `nothing`."""
        return ", ".join(f"{count} {label}" for label, count in Counter(self.labels).most_common()) or "nothing"

    def above(self, score: float | NDArray[np.floating]) -> Detections:
        """The detections with at least that score; `score` may be [D], one for each detection."""
        return self.where(self.scores >= score)

    def where(self, mask: NDArray[np.bool_]) -> Detections:
        """The detections for which `mask`, bool [D], is true."""
        keep = np.flatnonzero(mask)
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            class_ids=self.class_ids[keep],
            mask_bits=self.mask_bits[keep] if len(self.mask_bits) else self.mask_bits,
            mask_rle=tuple(self.mask_rle[i] for i in keep) if self.mask_rle else (),
        )

    # ---- masks
    @property
    def mask_size(self) -> int:
        """Pixels a side of the masks, as the server sent them."""
        return int(self.mask_bits.shape[1])

    @property
    def has_masks(self) -> bool:
        """Whether each detection has a mask; true if there are no detections."""
        return len(self) in (len(self.mask_bits), len(self.mask_rle))

    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool [D, mask_size, mask_size], stretched over the whole frame.

        Raises ValueError if the request asked for none, ImportError if they are COCO counts and pycocotools is missing.
        """
        self._need_masks()
        if len(self.mask_bits) == len(self):
            return np.unpackbits(self.mask_bits, axis=2, count=self.mask_size).astype(bool)
        return _coco_mask().decode(list(self.rle)).transpose(2, 0, 1).astype(bool)

    def masks_at(self, height: int, width: int, *, smooth: bool = True) -> NDArray[np.bool_]:
        """bool [D, height, width]: the masks scaled to that size, bilinear with a threshold of one half, or nearest
        neighbour if not `smooth`. Raises as `masks` does.
        """
        how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        scaled = np.zeros((len(self), height, width), bool)
        for out, mask in zip(scaled, self.masks, strict=True):
            out[:] = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), how)) >= 128
        return scaled

    @property
    def rle(self) -> tuple[dict[str, Any], ...]:
        """COCO's compressed run lengths of each mask, `{"size": [mask_size, mask_size], "counts": bytes}`.

        Raises ValueError without masks, ImportError if they are bits and pycocotools is missing.
        """
        self._need_masks()
        if self.mask_rle:
            return tuple({"size": [self.mask_size, self.mask_size], "counts": counts} for counts in self.mask_rle)
        return encode_rle(self.masks)

    def _need_masks(self) -> None:
        if not self.has_masks:
            raise ValueError('these detections carry no masks; ask for them: detect(..., mask_format="bits") or "rle"')

    # ---- other formats
    def to_coco(self, image_id: int = 0, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """COCO result records: `bbox` xywh in pixels, `score`, `category_id`, and `segmentation` at the frame's size if
        there are masks.

        `category_ids` maps class names to COCO's numbers; without it the index into the request's classes is used.
        Raises ImportError if there are masks and pycocotools is missing.
        """
        ids = category_ids or {name: i for i, name in enumerate(self.classes)}
        segmentations = encode_rle(self.masks_at(*self.frame_size)) if len(self) and self.has_masks else ()
        records: list[dict[str, Any]] = []
        for i, (x0, y0, x1, y1) in enumerate(self.boxes_in_pixels.tolist()):
            record = {
                "image_id": image_id,
                "category_id": ids[self.labels[i]],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(self.scores[i]),
            }
            records.append(record | {"segmentation": segmentations[i]} if segmentations else record)
        return records

    def to_supervision(self) -> Any:
        """`supervision.Detections` in pixels, masks included if there are any. Raises ImportError, naming the package,
        if supervision is missing.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_in_pixels,
            mask=self.masks_at(*self.frame_size) if len(self) and self.has_masks else None,
            confidence=self.scores,
            class_id=self.class_ids.astype(int),
            data={"class_name": np.array(self.labels, dtype=object)},
        )


def encode_rle(masks: NDArray[np.bool_] | Sequence[NDArray[np.bool_]]) -> tuple[dict[str, Any], ...]:
    """COCO's compressed run lengths of bool [D,H,W]; `counts` are bytes, as pycocotools expects them. Raises
    ImportError, naming the extra, if pycocotools is missing.
    """
    if not len(masks):
        return ()
    columns = np.asfortranarray(np.asarray(masks).transpose(1, 2, 0).astype(np.uint8))  # [H,W,D]: COCO scans columns
    return tuple(_coco_mask().encode(columns))


def _coco_mask() -> Any:
    """pycocotools' module for masks, imported where it is needed: a camera that sends no masks does without it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("masks in COCO's format need pycocotools: pip install 'sam3-triton[coco]'") from error
    return mask
