"""`python -m perf.bench.loop_cost`: what fetching a frame costs the event loop, with the reading thread and without it.

A film flows in (drawn if none is given), a table and one JSON line flow out. The loop plays a client whose server takes
`--answer-ms` for each frame; measured is only the time from asking for a frame to having it as JPEG, during which
nothing else can run in the loop that decodes by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clients.video.encode import VideoWriter, to_jpeg
from clients.video.reader import Reader
from clients.video.sources import open_source


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
    parser = argparse.ArgumentParser(
        prog="python -m perf.bench.loop_cost", description="What fetching a frame costs the event loop."
    )
    parser.add_argument("--film", type=Path, help="default: 1280x720, drawn")
    parser.add_argument("--frames", type=int, default=60, help="of the drawn film (default: %(default)s)")
    parser.add_argument(
        "--answer-ms", type=float, default=40.0, help="what the server is thought to take (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = options.film or film(Path(folder) / "film.mp4", options.frames)
        cost = asyncio.run(measure(path, options.answer_ms))
    result = {}
    for way, ms in cost.items():
        result[way] = {
            "median_ms": round(statistics.median(ms), 3),
            "mean_ms": round(statistics.fmean(ms), 3),
            "frames": len(ms),
        }
        print(
            f"{way:16s} median {result[way]['median_ms']:7.3f} ms  mean {result[way]['mean_ms']:7.3f} ms  {len(ms)}"
            " frames"
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
