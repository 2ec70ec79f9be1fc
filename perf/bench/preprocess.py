"""Pre-processing on the CPU and on a GPU, compared: drawn frames of a camera's kinds go in, milliseconds and grey
levels of difference come out.

Both ways are those of the front model, without Triton around them. A case fails where the GPU's pixels lie further from
Pillow's than the limit that the front model itself sets, or where a file that should be decoded on the GPU was not:
Pillow would then have been compared with itself.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ensemble.preprocess.cpu import CpuPreprocessor, DevicePreprocessor, Preprocessor
from ensemble.preprocess.gpu import MEAN_LIMIT, GpuDevice, GpuUnavailableError
from ensemble.request import FrameRequest
from ensemble.spec import RESOLUTIONS
from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import render
from perf.record import publish

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
            rows.append(
                {
                    "case": case,
                    "resolution": resolution,
                    "decoder": name if files else "none",
                    "files": len(files),
                    "decoded": sum(picture is not None for picture in device.decode(files)) if files else 0,
                    **compare(theirs, ours.get()),
                    **cpu_ms,
                    **{f"gpu_ms_{n}": milliseconds(way, requests[:n], rounds) for n in (1, BATCH)},
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
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
    """`python -m perf.bench.preprocess`: prints the table, writes the JSON where asked; 1 where pixels differ too much,
    2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.bench.preprocess",
        description="Pixels and time per frame of pre-processing on the CPU and on a GPU.",
        epilog="example: python -m perf.bench.preprocess --output perf/results/h200/preprocess.json",
    )
    parser.add_argument("--resolution", type=int, nargs="+", default=list(RESOLUTIONS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    options = parser.parse_args(argv)
    threads = min(BATCH, os.cpu_count() or 1)  # as many as the front model takes
    try:
        first = GpuDevice(options.resolution[0])
        with ThreadPoolExecutor(threads) as pool:
            rows = [
                row
                for size in options.resolution
                for row in measure(
                    size, options.rounds, pool, lambda resolution, hardware: GpuDevice(resolution, hardware=hardware)
                )
            ]
    except GpuUnavailableError as error:
        print(f"perf.bench.preprocess: {error}", file=sys.stderr)
        return 2
    import cupy

    gpu = cupy.cuda.runtime.getDeviceProperties(first.device_id)["name"].decode()
    title = (
        f"Milliseconds per frame alone and in a batch of {BATCH}, grey levels between both ways (median of"
        f" {options.rounds})"
    )
    publish(
        "perf.bench.preprocess",
        argv,
        title,
        rows,
        options.output,
        gpu=gpu,
        versions=first.versions,
        cpu_threads=threads,
    )
    bad = failures(rows)
    for sentence in bad:
        print(f"perf.bench.preprocess: {sentence}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
