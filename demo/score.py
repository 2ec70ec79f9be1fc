"""Average precision at IoU 0.5 of the cameras' boxes and masks, computed by pycocotools.

A class is scored on the frames of the cameras that look for it; masks are compared at the frame's own size.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from demo.cameras import Reel

AP50 = 1
"""Index in `COCOeval.stats` of AP at IoU 0.5, all areas, 100 detections per frame."""


@dataclass(frozen=True, slots=True)
class Score:
    """AP at IoU 0.5, 0 to 1; NaN where the ground truth has no objects."""

    boxes: float
    masks: float


def score(reels: Sequence[Reel]) -> tuple[Score, list[Score]]:
    """The score of all cameras together, and of each alone."""
    categories = {name: i + 1 for i, name in enumerate(sorted({c for reel in reels for c in reel.film.classes}))}
    truth: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for n, i in categories.items()],
    }
    found: list[dict[str, Any]] = []
    cameras: list[list[int]] = []
    for reel in reels:
        cameras.append([])
        width, height = reel.film.size
        for shot in reel.shots:
            image = len(truth["images"]) + 1
            cameras[-1].append(image)
            truth["images"].append({"id": image, "width": width, "height": height})
            truth["annotations"] += _annotations(reel, shot.index, image, categories, len(truth["annotations"]))
            found += shot.found.to_coco(image, categories)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        gold = COCO()
        gold.dataset = truth
        gold.createIndex()
        # loadRes does not accept an empty list
        result = gold.loadRes(found) if found else COCO()
        everything = [image for images in cameras for image in images]
        return _evaluate(gold, result, everything), [_evaluate(gold, result, images) for images in cameras]


def _annotations(reel: Reel, index: int, image: int, categories: dict[str, int], count: int) -> list[dict[str, Any]]:
    """COCO annotations of one frame, numbered from `count` + 1, for the classes that the camera looks for."""
    width, height = reel.film.size
    annotations: list[dict[str, Any]] = []
    for thing in reel.film.objects(index):
        if thing["class"] not in reel.film.classes:
            continue
        x0, y0, x1, y1 = thing["bbox"]
        annotations.append(
            {
                "id": count + len(annotations) + 1,  # for pycocotools 0 means "no match"
                "image_id": image,
                "category_id": categories[thing["class"]],
                "bbox": [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height],
                "area": thing["area"],
                "segmentation": thing["mask"],
                "iscrowd": 0,
            }
        )
    return annotations


def _evaluate(gold: COCO, result: COCO, images: list[int]) -> Score:
    if not gold.getAnnIds(imgIds=images):
        return Score(float("nan"), float("nan"))
    if not result.anns or not result.getAnnIds(imgIds=images):
        return Score(0.0, 0.0)
    values = []
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(gold, result, kind)
        evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        values.append(float(np.asarray(evaluation.stats)[AP50]))
    return Score(*values)
