"""What fetching a frame costs a client's event loop, with the reading thread and without it.

The loop plays a client whose server takes `--answer-ms` for each frame of a film. Only the time from asking for a frame
to having it as JPEG is measured, during which nothing else can run in the loop that decodes by itself.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clients.video.encode import VideoWriter, to_jpeg
from clients.video.reader import Reader
from clients.video.sources import open_source
from perf import record
from perf.console import make_parser

EXAMPLES = """examples:
  sam3-perf bench loop-cost
  sam3-perf bench loop-cost --film build/demo/films/camera_1.mp4 --answer-ms 60"""


def film(path: Path, frames: int, height: int = 720, width: int = 1280) -> Path:
    """A 25 fps H.264 film of a sliding gradient with some noise, so that decoding and JPEG have something to do."""
    noise = np.random.default_rng(0).integers(0, 24, (height, width, 3), np.uint8)
    ramp = np.linspace(0, 230, width).astype(np.uint8)[None, :, None]
    with VideoWriter(path, 25) as writer:
        for i in range(frames):
            writer.write(np.roll(ramp, 8 * i, axis=1) + noise)
    return path


async def measure(path: Path, answer_ms: float) -> dict[str, list[float]]:
    """Milliseconds per frame, by way of reading."""
    cost: dict[str, list[float]] = {"in the loop": [], "reading thread": []}
    with open_source(path) as source:
        frames = iter(source)
        while True:
            start = time.perf_counter()
            if (frame := next(frames, None)) is None:
                break
            to_jpeg(frame.rgb)
            cost["in the loop"].append((time.perf_counter() - start) * 1e3)
            await asyncio.sleep(answer_ms / 1e3)
    reader = Reader(str(path)).start()
    await asyncio.sleep(answer_ms / 1e3)  # as the first frame of a run meets a server that is still busy with another
    while True:
        start = time.perf_counter()
        if await reader.next() is None:
            break
        cost["reading thread"].append((time.perf_counter() - start) * 1e3)
        await asyncio.sleep(answer_ms / 1e3)
    return cost


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured."""
    parser = make_parser("bench loop-cost", __doc__, EXAMPLES)
    parser.add_argument("--film", type=Path, help="default: 1280x720, drawn")
    parser.add_argument("--frames", type=int, default=60, help="of the drawn film; default %(default)s")
    parser.add_argument(
        "--answer-ms", type=float, default=40.0, help="what the server is thought to take; default %(default)s"
    )
    record.add_output(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = options.film or film(Path(folder) / "film.mp4", options.frames)
        cost = asyncio.run(measure(path, options.answer_ms))
    rows = []
    for way, ms in cost.items():
        figures = {"median_ms": statistics.median(ms), "mean_ms": statistics.fmean(ms)}
        rows.append({"way": way, **{name: round(value, 3) for name, value in figures.items()}, "frames": len(ms)})
    record.publish(options.output, record.new(parser.prog, argv) | {"rows": rows}, "fetching a frame")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
