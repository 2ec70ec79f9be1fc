"""What a second, closer look at small objects is worth: average precision and milliseconds of four ways to look.

The ways are one low resolution, one high resolution, and the fleet's zoom (low first, then high on crops around what
might be there) with few and many crops. All see the same frames of one server, one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clients.connection import AsyncClient
from clients.detections import Detections
from clients.errors import Sam3ServerError
from clients.fleet.zoom import Zoom, look_closer
from clients.video.encode import to_jpeg
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import Rendering, render
from perf import record
from perf.console import make_parser, refuse

SIZE = (720, 1280)  # height, width of the frames
FLOOR = 0.05  # average precision wants the low scores too
CROPS = (4, 8)
EXAMPLES = """example:
  sam3-perf bench zoom --repository build/repository --low sam3_r140 --high sam3_r252"""


class Comparison:
    """Ground truth of the scenes, and what each way found in them and took for it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.truth: list[dict[str, Any]] = []
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.took: dict[str, list[float]] = {}

    def scene(self, rendering: Rendering, classes: Sequence[str]) -> dict[str, int]:
        """Adds one frame's objects; returns COCO's category numbers of its classes."""
        self.names += [name for name in classes if name not in self.names]
        ids = {name: self.names.index(name) + 1 for name in classes}
        height, width = SIZE
        self.images.append({"id": len(self.images) + 1, "width": width, "height": height})
        for instance in rendering.instances:
            x0, y0, x1, y1 = instance.box
            box = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
            name = f"{instance.colour} {instance.shape}"
            entry = {"image_id": len(self.images), "category_id": ids[name], "bbox": box}
            self.truth.append({"id": len(self.truth) + 1, "area": box[2] * box[3], "iscrowd": 0, **entry})
        return ids

    async def look(self, way: str, ids: dict[str, int], looking: Callable[[], Awaitable[Detections]]) -> None:
        """Times one way of looking at the last scene."""
        start = time.perf_counter()
        found = await looking()
        self.took.setdefault(way, []).append((time.perf_counter() - start) * 1e3)
        self.found.setdefault(way, []).extend(found.above(FLOOR).to_coco(len(self.images), ids))

    def rows(self) -> list[dict[str, Any]]:
        """Box AP and AP50 over all objects, and the median milliseconds a frame, for each way."""
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(self.names)]
        rows = []
        for way, found in self.found.items():
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
                truth = COCO()
                truth.dataset = {"images": self.images, "annotations": self.truth, "categories": categories}
                truth.createIndex()
                judge = COCOeval(truth, truth.loadRes(found), "bbox")
                judge.evaluate()
                judge.accumulate()
                judge.summarize()
            figures = {"ap": round(float(judge.stats[0]), 3), "ap50": round(float(judge.stats[1]), 3)}
            rows.append({"way": way, **figures, "median_ms": round(float(np.median(self.took[way])), 1)})
        return rows


async def measure(server: EmbeddedServer, low_model: str, high_model: str, scenes: int, shrink: float) -> Comparison:
    """Looks at `scenes` held-out scenes, their objects shrunk to `shrink` of their size, in every way."""
    compared = Comparison()
    async with (
        AsyncClient(server.grpc_url, model=low_model) as low,
        AsyncClient(server.grpc_url, model=high_model) as high,
    ):
        for seed in validation_seeds(scenes):
            scene = random_scene(seed, aspect=SIZE[1] / SIZE[0])
            smaller = tuple(dataclasses.replace(o, size=o.size * shrink) for o in scene.objects)
            rendering = render(dataclasses.replace(scene, objects=smaller), *SIZE)
            classes = sorted({f"{i.colour} {i.shape}" for i in rendering.instances})
            if not classes:
                continue
            ids, jpeg = compared.scene(rendering, classes), to_jpeg(rendering.frame)

            async def ask(crop: bytes, classes: list[str] = classes) -> Detections:
                return await high.detect(crop, classes, threshold=FLOOR)

            async def first(jpeg: bytes = jpeg, classes: list[str] = classes) -> Detections:
                return await low.detect(jpeg, classes, threshold=FLOOR)

            async def closer(crops: int, frame: np.ndarray = rendering.frame) -> Detections:
                return await look_closer(
                    frame, await first(), Zoom(high_model, suspect=0.1, crops=crops, least=0.35), ask
                )

            await compared.look(f"{low_model} alone", ids, first)
            await compared.look(f"{high_model} alone", ids, partial(ask, jpeg))
            for crops in CROPS:
                await compared.look(f"zoom, {crops} crops", ids, partial(closer, crops))
    return compared


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: the server cannot start or lacks a model, and stderr says which."""
    parser = make_parser("bench zoom", __doc__, EXAMPLES)
    parser.add_argument(
        "--repository", type=Path, required=True, help="with both resolutions, as sam3-export writes it"
    )
    parser.add_argument("--low", default="sam3_r140", help="front model of the first look; default %(default)s")
    parser.add_argument("--high", default="sam3_r252", help="front model of the second; default %(default)s")
    parser.add_argument("--scenes", type=int, default=60, help="default %(default)s")
    parser.add_argument("--shrink", type=float, default=0.35, help="of the drawn objects; default %(default)s")
    record.add_output(parser)
    options = parser.parse_args(argv)
    try:
        with EmbeddedServer(options.repository) as server:
            compared = asyncio.run(measure(server, options.low, options.high, options.scenes, options.shrink))
    except (ServerError, Sam3ServerError) as error:
        return refuse(parser.prog, error)
    side = round(float(np.median([np.sqrt(entry["area"]) for entry in compared.truth])), 1)
    counts = {"scenes": len(compared.images), "objects": len(compared.truth), "median_side_px": side}
    title = f"{counts['scenes']} scenes, {counts['objects']} objects"
    record.publish(options.output, record.new(parser.prog, argv) | counts | {"rows": compared.rows()}, title)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
