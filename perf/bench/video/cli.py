"""Videos on a GPU: what each further object costs, and how many frames a second a server gives several videos.

In the rows of one session and many objects the flow runs in this process: vision encoder, tracker, bank and rules,
without files and Triton; every object remembers ten maps. In the others cameras send JPEG files of 1080p to the real
server. Beside both stands transformers' tracker in bfloat16 on the same card, and the least cosine of the repository's
artifacts with the checkpoint in fp32. The detector looks at every `detect_every`-th frame; transformers' never looks.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.server import gpu
from ensemble.server import repository as placement
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.fit_videos import Load, fit
from ensemble.server.memory import parse_mb
from ensemble.server.requirements import ServerError
from ensemble.server.videos import VideoServed, videos_of
from ensemble.spec import MB
from ensemble.video.sizes import slot_bytes
from perf import record
from perf.bench.video.flow import RARELY, Flow
from perf.bench.video.peer import TransformersTracker
from perf.bench.video.served import measure
from perf.console import make_parser, refuse

FRAMES, WARM = 30, 14
"""Frames of a video in this process; the first ones load kernels and fill the memory, and are not counted."""
COLUMNS = (
    *("resolution", "tracker_resolution", "sessions", "objects", "detect_every", "fps", "ms_per_object"),
    *("transformers_fps", "of_transformers", "memory_mb", "reckoned_mb", "peak_mb", "cosine"),
)
EXAMPLES = """examples:
  sam3-perf bench video --repository build/packages --resolution 1008 840 672 560
  sam3-perf bench video --repository build/packages --resolution 672 --objects --sessions 8 --detect-every 1 4
  sam3-perf bench video --repository build/packages --resolution 1008 672 --objects --sessions 8 --memory 4GB 8GB"""
log = logging.getLogger(__name__)
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    p = make_parser("bench video", __doc__, EXAMPLES)
    add = p.add_argument
    add("--repository", type=Path, required=True, help="real size, written by sam3-export --video")
    add("--resolution", type=int, nargs="+", default=[672], help="default 672")
    add("--tracker-resolution", type=int, help="default: the detector's")
    help_ = "of one session in this process; none: leave these rows out; default 1 to 64"
    add("--objects", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64], help=help_)
    help_ = "at the server; none: leave these rows out; default 1 8"
    add("--sessions", type=int, nargs="*", default=[1, 8], help=help_)
    add("--session-objects", type=int, default=5, help="of each session at the server; default %(default)s")
    add("--detect-every", type=int, nargs="+", default=[1, 8], help="at the server; default 1 8")
    add("--video-memory", type=float, default=2000.0, metavar="MB", help="of the server; default %(default)s")
    help_ = "of a GPU, as in 4GB 8GB: rows of a server that takes as much, as sam3-serve --videos chooses; default none"
    add("--memory", type=parse_mb, nargs="+", default=[], metavar="SIZE", help=help_)
    add("--seconds", type=float, default=8.0, help="of each of the server's windows; default %(default)s")
    add("--no-peer", action="store_true", help="leave transformers out")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: the repository serves no videos, or the server cannot start."""
    p = parser()
    options = p.parse_args(argv)
    data = record.new(p.prog, argv) | {"rows": []}
    try:
        for served in [] if options.memory else offered(options):
            rows = list(in_process(served, options.objects)) if options.objects else []
            rows += at_the_server(served, options)
            counts = sorted({row["objects"] for row in rows})
            peer = {} if options.no_peer else transformers_fps(served.variant.tracking.resolution, counts)
            cosine = least_cosine(served)
            for row in rows:
                theirs = peer.get(row["objects"])
                ratio = round(row["fps"] / theirs, 2) if theirs else None
                row |= {"transformers_fps": theirs, "of_transformers": ratio, "cosine": cosine}
                log.info("%s", json.dumps(row))
            data["rows"] += rows
            record.write(options.output, data)
        for memory_mb in options.memory:
            data["rows"] += in_memory(memory_mb, options)
            record.write(options.output, data)
    except ServerError as error:
        return refuse(p.prog, error)
    record.publish(options.output, data, "videos", COLUMNS)
    return 0


def offered(options: argparse.Namespace) -> list[VideoServed]:
    known = placement.read(options.repository)
    chosen = placement.choose(known, options.resolution)
    # What each of them is given is said when it is used: here it only has to be enough.
    return videos_of(chosen, known, len(chosen) * options.video_memory, options.tracker_resolution)


def device() -> int | None:
    return 0 if gpu.gpus() else None


def in_process(served: VideoServed, counts: Sequence[int]) -> Iterator[Row]:
    """A row for each number of objects of one video."""
    variant, before = served.variant, gpu.used_mb()
    flow = Flow(served, max(counts), device())
    rng = np.random.default_rng(0)
    side = variant.detector.resolution
    frames = [rng.integers(0, 256, (3, side, side), np.uint8) for _ in range(4)]
    earlier: tuple[int, float] | None = None
    for objects in sorted(counts):
        times = list(flow.frames([frames[n % len(frames)] for n in range(FRAMES)], objects))
        ms = float(np.median(times[WARM:]))
        more = (ms - earlier[1]) / (objects - earlier[0]) if earlier else None
        earlier = objects, ms
        yield {
            **about(served, 1, objects, RARELY),
            "fps": round(1e3 / ms, 2),
            "ms_per_object": None if more is None else round(more, 3),
            "peak_mb": round(gpu.used_mb() - before),
        }
    del flow
    free()


def at_the_server(served: VideoServed, options: argparse.Namespace) -> list[Row]:
    """A row for each number of sessions and each `detect_every`."""
    rows: list[Row] = []
    if not options.sessions:
        return rows
    variant, objects, before = served.variant, options.session_objects, gpu.used_mb()
    needed = max(options.sessions) * objects * slot_bytes(variant.tracking) / MB + 1
    with EmbeddedServer(
        options.repository,
        resolutions=[variant.detector.resolution],
        video_memory_mb=max(needed, options.video_memory),
        tracker_resolution=variant.tracking.resolution,
        start_timeout=600,
    ) as server:
        for sessions in sorted(options.sessions):
            for every in options.detect_every:
                told = measure(server.grpc_url, variant, sessions, objects, every, options.seconds)
                row = {**about(served, sessions, objects, every), **told, "peak_mb": round(gpu.used_mb() - before)}
                rows.append(row)
                log.info("%s", json.dumps(row))
    return rows


def in_memory(memory_mb: float, options: argparse.Namespace) -> Iterator[Row]:
    """A row for each number of sessions: what a server takes that was told to fit so many into that memory."""
    known = placement.choose(placement.read(options.repository), options.resolution)
    for sessions in options.sessions:
        load = Load(sessions, options.session_objects)
        chosen, before = fit(known, load, memory_mb), gpu.used_mb()
        log.info("%s", chosen)
        with EmbeddedServer(
            options.repository, gpu_memory_mb=memory_mb, start_timeout=600, **chosen.settings()
        ) as server:
            (served,) = videos_of(
                placement.choose(known, [chosen.resolution]), known, chosen.video_memory_mb, chosen.tracker_resolution
            )
            arguments = sessions, load.objects, options.detect_every[0], options.seconds
            told = measure(server.grpc_url, served.variant, *arguments)
            row = {**about(served, *arguments[:3]), **told, "peak_mb": round(gpu.used_mb() - before)}
        row |= {"memory_mb": round(memory_mb), "reckoned_mb": round(chosen.need.total) if chosen.need else None}
        row |= {"max_batch": chosen.max_batch, "text_encoder": chosen.text_encoder, "cosine": least_cosine(served)}
        log.info("%s", json.dumps(row))
        yield row


def about(served: VideoServed, sessions: int, objects: int, every: int) -> Row:
    detector, tracking = served.variant.detector, served.variant.tracking
    return {
        "resolution": detector.resolution,
        "tracker_resolution": tracking.resolution,
        "engine": served.engines["tracker_step"],
        "precision": detector.precision,
        "sessions": sessions,
        "objects": objects,
        "detect_every": every,
    }


def transformers_fps(resolution: int, counts: Sequence[int]) -> dict[int, float]:
    """Frames a second of transformers' tracker by number of objects; without those that the card has no room for."""
    import torch

    peer = TransformersTracker(resolution, "cpu" if device() is None else "cuda")
    found = {}
    for objects in counts:
        try:
            found[objects] = round(1e3 / peer.frame_ms(objects), 2)
        except torch.cuda.OutOfMemoryError:
            log.warning("transformers at %d: no room for %d objects", resolution, objects)
        free()
    del peer
    free()
    return found


def least_cosine(served: VideoServed) -> float | None:
    """Of all outputs of the artifacts that are used, as their gates measured them."""
    gates = [artifact.manifest.get("gate") or {} for _, artifact in served.artifacts]
    cosines = [output["cosine"] for gate in gates for output in gate.get("outputs", {}).values()]
    return round(min(cosines), 6) if cosines else None


def free() -> None:
    """Gives PyTorch's cached memory back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    raise SystemExit(main())
