"""What a frame costs outside the sub-models, on the embedded server.

The server answers one frame at a time, then eight cameras at once. Each answer says how long its batch spent in the
stages that call the sub-models; the rest of the round trip is decoding, packing, the hand-over between models and the
protocol. Every case runs in one process on one server, alternating, so that the figures can be compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clients.connection import AsyncClient
from clients.detections import Detections
from clients.errors import Sam3ServerError
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import render
from perf import record
from perf.console import make_parser, refuse

CASES = {
    # name: (cameras at once, mask format, whether the classes are in the frame)
    "1 camera, found, no masks": (1, "none", True),
    "1 camera, found, masks": (1, "bits", True),
    "1 camera, nothing there, masks": (1, "bits", False),
    "8 cameras, found, no masks": (8, "none", True),
    "8 cameras, found, masks": (8, "bits", True),
}
ABSENT = ("purple dinosaur", "zebra")
SUB_MODEL_STAGES = ("text", "vision", "geometry", "decoder", "masks")
EXAMPLES = """example:
  sam3-perf bench overhead --repository build/repository"""


def sub_models_ms(answer: Detections) -> float:
    """A frame's share of what its batch spent in the stages that call sub-models."""
    return sum(answer.stage_ms[stage] for stage in SUB_MODEL_STAGES) / answer.batch


async def measure(server: EmbeddedServer, model: str, rounds: int) -> list[dict[str, Any]]:
    """A row per case: milliseconds per frame in all, in the sub-models and outside them, medians over `rounds`."""
    rendering = render(random_scene(next(iter(validation_seeds(1)))), 252, 252)
    present = tuple(sorted({f"{i.colour} {i.shape}" for i in rendering.instances}))[:2]
    samples: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in CASES}
    async with AsyncClient(server.grpc_url, model=model) as client:
        for turn in range(rounds + 2):
            for name, (cameras, mask_format, there) in CASES.items():
                classes = present if there else ABSENT[: len(present)]
                start = time.perf_counter()
                one = partial(client.detect, rendering.frame, classes, mask_format=mask_format, threshold=0.5)
                answers = await asyncio.gather(*(one() for _ in range(cameras)))
                wall = (time.perf_counter() - start) * 1e3
                inside = sum(sub_models_ms(answer) for answer in answers)
                if turn >= 2:  # the first turns warm caches and allocators up
                    samples[name].append((wall / cameras, inside / cameras, answers[0].batch, len(answers[0])))
    rows = []
    for name, values in samples.items():
        wall, inside, batch, found = np.array(values).T
        row = {"case": name, "ms_per_frame": np.median(wall), "sub_models_ms": np.median(inside)}
        row |= {"outside_ms": np.median(wall - inside), "batch": batch.mean()}
        row = {key: value if key == "case" else round(float(value), 2) for key, value in row.items()}
        rows.append(row | {"detections": int(found[0])})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: the server cannot start, and stderr says why."""
    parser = make_parser("bench overhead", __doc__, EXAMPLES)
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("build/repository"),
        help="what sam3-export wrote; default %(default)s, which the demo makes",
    )
    parser.add_argument("--model", default="sam3_r252", help="front model to ask; default %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="default %(default)s")
    record.add_output(parser)
    options = parser.parse_args(argv)
    try:
        with EmbeddedServer(options.repository) as server:
            rows = asyncio.run(measure(server, options.model, options.rounds))
    except (ServerError, Sam3ServerError) as error:
        return refuse(parser.prog, error)
    title = f"{options.model}, milliseconds per frame (median of {options.rounds})"
    record.publish(options.output, record.new(parser.prog, argv) | {"rows": rows}, title)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
