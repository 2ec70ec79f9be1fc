"""Frames a second of one video, for the rows of `bench tracking`: the server's own flow on the processor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ensemble.preprocess.cpu import to_pixel_values
from ensemble.prompts import PromptTokenizer
from ensemble.request import FrameRequest
from ensemble.server import repository as placement
from ensemble.server.videos import VideoServed, videos_of
from ensemble.video.request import Asked
from ensemble.video.turns import VideoJob
from ensemble.video.variant import DEFAULT_OBJECTS
from export.tiny.video.evaluate import Video
from perf.bench.video.flow import Flow

ROUNDS = 3
HOW = (
    "the server's flow in one process, frames of 480x270 resized but not decoded, without Triton; each frame as"
    f" in the fastest of {ROUNDS} rounds, since other work may disturb one; cpu_ms is the time of all threads a frame"
)
Row = dict[str, Any]


def speeds(
    repository: Path,
    resolution: int,
    tracker_resolutions: Sequence[int],
    every: Sequence[int],
    videos: Sequence[tuple[Video, tuple[str, ...]]],
    rounds: int = ROUNDS,
) -> Iterator[Row]:
    """`fps` and `cpu_ms` for each tracker resolution and each k of `every`, over videos with the classes to look for.
    Raises ServerError where the repository has no such video model."""
    known = placement.read(repository)
    for ours in tracker_resolutions:
        (served,) = videos_of(placement.choose(known, [resolution]), known, None, ours)
        play = Player(served)
        play(*videos[0], every[0])  # the first runs allocate
        rows = [[np.concatenate([play(*video, k) for video in videos]) for k in every] for _ in range(rounds)]
        best = np.min(rows, 0).mean(1)  # [k, (wall, processor)] seconds
        for k, (wall, processor) in zip(every, best, strict=True):
            told = {"fps": round(1 / wall, 2), "cpu_ms": round(1e3 * processor, 2)}
            yield {"resolution": resolution, "tracker_resolution": ours, "detect_every": k, **told}


class Player:
    """Plays whole videos, one at a time, through a video model in this process."""

    def __init__(self, served: VideoServed) -> None:
        self._flow = Flow(served, DEFAULT_OBJECTS, None)
        self._tokenizer = PromptTokenizer(served.detector.tokenizer, served.tracking.variant.checkpoint.context_length)
        self._side = served.variant.detector.resolution

    def __call__(self, video: Video, names: tuple[str, ...], every: int) -> np.ndarray:
        """Seconds of wall clock and of all threads' processor time for each frame, [T, 2]."""
        pipeline, last = self._flow.pipeline, len(video.frames) - 1
        tokens = [self._tokenizer(name) for name in names]
        clocks = [(time.perf_counter(), time.process_time())]
        for index, frame in enumerate(video.frames):
            asked = Asked(1, index == 0, index == last, every)
            request = FrameRequest(names, frame=frame, mask_format="bits")
            pixels = to_pixel_values(Image.fromarray(frame), self._side)[None]
            job = VideoJob(request, tokens, frame.shape[:2], asked=asked)
            (answer,) = pipeline.complete(pipeline.begin([job], pixels))
            if isinstance(answer, Exception):
                raise answer
            clocks.append((time.perf_counter(), time.process_time()))
        return np.diff(clocks, axis=0)


def fill(rows: Sequence[Row], measured: Sequence[Row]) -> None:
    """Writes the speeds into the rows of the same setting."""
    key = ("resolution", "tracker_resolution", "detect_every")
    by_key = {tuple(row[name] for name in key): row for row in measured}
    for row in rows:
        row |= by_key.get(tuple(row[name] for name in key), {})
