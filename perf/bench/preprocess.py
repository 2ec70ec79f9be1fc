"""Pre-processing on the CPU and on a GPU, compared: milliseconds, and grey levels of difference.

Both ways are those of the front model, without Triton around them. A case fails where the GPU's pixels lie further from
Pillow's than the limit that the front model itself sets, or where a file that should be decoded on the GPU was not:
Pillow would then have been compared with itself.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from ensemble.preprocess.cpu import CpuPreprocessor, DevicePreprocessor, Preprocessor
from ensemble.preprocess.gpu import MEAN_LIMIT, GpuDevice, GpuUnavailableError
from ensemble.request import FrameRequest
from ensemble.spec import RESOLUTIONS
from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import render
from perf import record
from perf.console import make_parser, refuse

BATCH = 8
CASES: dict[str, tuple[int, int, dict[str, Any] | None]] = {
    # name: (width, height, options of the JPEG file, None for a raw frame)
    "1080p, 4:2:0": (1920, 1080, {"subsampling": 2}),
    "1080p, 4:2:2": (1920, 1080, {"subsampling": 1}),
    "1080p, 4:4:4": (1920, 1080, {"subsampling": 0}),
    "1080p, grey": (1920, 1080, {"grey": True}),
    "1080p, progressive": (1920, 1080, {"progressive": True}),
    "1279x719, 4:2:0": (1279, 719, {"subsampling": 2}),
    "1080p, raw": (1920, 1080, None),
}
ENGINES = {"JPEG engines": True, "CUDA cores": False}
"""What decodes on the GPU -> `GpuDevice`'s `hardware`."""
EXAMPLES = """examples:
  sam3-perf bench preprocess
  sam3-perf bench preprocess --resolution 1008 --rounds 50"""
log = logging.getLogger(__name__)


def frames(width: int, height: int, options: dict[str, Any] | None, count: int = BATCH) -> list[FrameRequest]:
    """`count` held-out scenes as requests: JPEG files of quality 90, or raw where `options` is None."""
    requests = []
    for seed in validation_seeds(count):
        drawn = render(random_scene(seed, aspect=width / height), height, width).frame
        if options is None:
            requests.append(FrameRequest(("",), frame=drawn))
            continue
        image = Image.fromarray(drawn)
        image = image.convert("L") if options.get("grey") else image
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=90, **{name: value for name, value in options.items() if name != "grey"})
        requests.append(FrameRequest(("",), image=stream.getvalue()))
    return requests


def milliseconds(way: Preprocessor, requests: Sequence[FrameRequest], rounds: int) -> float:
    """Median per frame; a call returns when its batch is written."""
    times = []
    for turn in range(rounds + 2):
        start = time.perf_counter()
        way(requests)
        if turn >= 2:  # the first turns warm caches and allocators up
            times.append((time.perf_counter() - start) * 1e3 / len(requests))
    return round(float(np.median(times)), 3)


def compare(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Grey levels between two batches uint8 [B,3,R,R]: the mean over the worst frame, and the largest difference of any
    pixel."""
    difference = np.abs(ours.astype(np.int16) - theirs)
    return {"mean": round(float(difference.mean(axis=(1, 2, 3)).max()), 4), "max": int(difference.max())}


def measure(
    resolution: int, rounds: int, pool: ThreadPoolExecutor, make: Callable[[int, bool], GpuDevice]
) -> list[dict[str, Any]]:
    """A row per case and decoder at one resolution. `make` opens a device of that resolution, with the JPEG engines or
    without."""
    cpu, rows = CpuPreprocessor(resolution, pool), []
    devices = {name: make(resolution, hardware) for name, hardware in ENGINES.items()}
    for case, (width, height, options) in CASES.items():
        requests = frames(width, height, options)
        files = [request.image for request in requests if request.image is not None]
        theirs, _ = cpu(requests)
        cpu_ms = {f"cpu_ms_{n}": milliseconds(cpu, requests[:n], rounds) for n in (1, BATCH)}
        for name, device in devices.items():
            if options is None and name != next(iter(devices)):
                continue  # nothing to decode
            way = DevicePreprocessor(device, pool)
            ours, _ = way(requests)
            row = {"case": case, "resolution": resolution, "decoder": name if files else "none", "files": len(files)}
            row["decoded"] = sum(picture is not None for picture in device.decode(files)) if files else 0
            row |= compare(theirs, ours.get()) | cpu_ms
            row |= {f"gpu_ms_{n}": milliseconds(way, requests[:n], rounds) for n in (1, BATCH)}
            rows.append(row)
            log.info("%s", json.dumps(row))
    return rows


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for every row that must not be."""
    found = []
    for row in rows:
        where = f"{row['case']} at {row['resolution']}, {row['decoder']}"
        if not row["mean"] <= MEAN_LIMIT:
            found.append(f"{where}: expected at most {MEAN_LIMIT} grey levels on average, got {row['mean']}")
        if row["decoded"] != row["files"]:
            found.append(f"{where}: expected {row['files']} files decoded on the GPU, got {row['decoded']}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 1: pixels differ too much; 2: there is no GPU."""
    parser = make_parser("bench preprocess", __doc__, EXAMPLES)
    parser.add_argument("--resolution", type=int, nargs="+", default=list(RESOLUTIONS), help="default: all four")
    parser.add_argument("--rounds", type=int, default=20, help="default %(default)s")
    record.add_output(parser)
    options = parser.parse_args(argv)
    threads = min(BATCH, os.cpu_count() or 1)  # as many as the front model takes
    rows: list[dict[str, Any]] = []
    try:
        with ThreadPoolExecutor(threads) as pool:
            for resolution in options.resolution:
                rows += measure(resolution, options.rounds, pool, lambda r, hardware: GpuDevice(r, hardware=hardware))
    except GpuUnavailableError as error:
        return refuse(parser.prog, error)
    title = f"milliseconds a frame alone and in a batch of {BATCH}, grey levels between both ways"
    record.publish(options.output, record.new(parser.prog, argv) | {"cpu_threads": threads, "rows": rows}, title)
    bad = failures(rows)
    for sentence in bad:
        print(f"{parser.prog}: {sentence}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
