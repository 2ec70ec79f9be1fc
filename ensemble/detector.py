"""One variant's detector: reads the pixels of a batch of parsed frames, then runs the pipeline on them.

Two models share this: the engine model (`ensemble/engine.py`), which holds the sub-models itself, and a front model
whose sub-models Triton runs (`ensemble/front.py`). A frame that cannot be answered gets its own error; the others of
its batch go on without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ensemble import pipeline
from ensemble.pipeline import Job, Pipeline
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import Preprocessor, Size, attempt, joined
from ensemble.request import FrameRequest

log = logging.getLogger(__name__)
PATIENCE = 500
"""Calls without want of memory after which larger ones are tried again."""
Prepared = Job | Exception
"""One frame of a batch: its job, or why it cannot be answered."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch whose features are under way: its items, the jobs among them, their pixels, and the pipeline's state or
    why it has none."""

    batch: Sequence[Prepared]
    jobs: Sequence[Job]
    pixel_values: Any
    pipeline: Any


class Detector:
    """One variant's frames to detections. `read` and `detect` of different batches may run in two threads at once."""

    def __init__(
        self, pipeline: Pipeline, preprocess: Preprocessor, release: Callable[[], None] = lambda: None
    ) -> None:
        """`release` gives back memory that is kept for the next calls, in either thread."""
        self.pipeline, self._preprocess, self._release = pipeline, preprocess, release
        self._most_frames = pipeline.variant.max_batch  # of one call: fewer where memory is short
        self._since_short = 0  # calls that memory sufficed for, since it did not

    def read(self, batch: list[Prepared]) -> Any:
        """Pixels uint8 [B,3,R,R] of the frames that can be read; in `batch`, a job whose frame cannot be read gives its
        place to the reason."""
        start = time.perf_counter()
        places = [i for i, item in enumerate(batch) if isinstance(item, Job)]
        jobs: Sequence[Any] = [batch[i] for i in places]
        pixel_values, sizes = self._pixels([job.request for job in jobs])
        milliseconds = (time.perf_counter() - start) * 1e3
        for place, job, size in zip(places, jobs, sizes, strict=True):
            if isinstance(size, Exception):
                batch[place] = size
            else:
                job.frame_size = job.frame_size or size  # known already of a frame that a front model has scaled
                job.add_ms("decode", milliseconds)
        return pixel_values

    def _pixels(self, requests: Sequence[FrameRequest]) -> tuple[Any, list[Size | Exception]]:
        """As a `Preprocessor`; where memory runs out, the frames are read in halves, and one that has no room alone
        gets its own error."""
        try:
            return self._preprocess(requests)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._release()
        if len(requests) == 1:
            message = (
                "there is no memory to decode this frame; send it smaller, or start the server with less on its GPU"
            )
            return self._preprocess([])[0], [MemoryError(message)]
        log.warning("memory ran out while %d frames were decoded; they are in halves", len(requests))
        half = len(requests) // 2
        (first, sizes), (second, more) = self._pixels(requests[:half]), self._pixels(requests[half:])
        return joined([part for part in (first, second) if len(part)] or [first]), [*sizes, *more]

    def knows(self, jobs: Sequence[Job]) -> bool:
        """Whether no name of these jobs has to be encoded."""
        return self.pipeline.prompts.knows([name for job in jobs for name in job.tokens])

    def encode(self, jobs: Sequence[Job]) -> None:
        """Has the names of these jobs encoded ahead of `begin`; raises what encoding raises."""
        start = time.perf_counter()
        self.pipeline.encode(jobs)
        for job in jobs:
            job.add_ms("text", (time.perf_counter() - start) * 1e3)

    def detect(self, batch: Sequence[Prepared], pixel_values: Any) -> list[Detections | Exception]:
        """The answer to each item of `batch`, in order; see `complete`."""
        return self.complete(self.begin(batch, pixel_values))

    def begin(self, batch: Sequence[Prepared], pixel_values: Any) -> Begun:
        """Starts a batch: on a GPU, work is launched and not waited for. `complete` comes before the next `begin`."""
        jobs = [item for item in batch if isinstance(item, Job)]
        first = slice(self._most_frames)
        begun = attempt(self.pipeline.begin, jobs[first], pixel_values[first]) if jobs else None
        return Begun(batch, jobs, pixel_values, begun)

    def complete(self, begun: Begun) -> list[Detections | Exception]:
        """The answer to each item of the batch, in order. What the pipeline raises is the answer to all its frames;
        where memory runs out, the batch is halved, and where a single frame's does, its decoder calls. What was too
        much is not tried again for a while."""
        jobs, pixel_values, first = begun.jobs, begun.pixel_values, begun.pipeline
        found: list[Detections | Exception] = []
        if jobs:
            started = isinstance(first, pipeline.Begun)
            own = len(first.jobs) if started else min(len(jobs), self._most_frames)
            made = attempt(self.pipeline.complete, first) if started else first
            found += self._answers(jobs[:own], pixel_values[:own], made)
            while len(found) < len(jobs):
                part = slice(len(found), len(found) + self._most_frames)
                found += self._run(jobs[part], pixel_values[part])
        rest = iter(found)
        return [next(rest) if isinstance(item, Job) else item for item in begun.batch]

    def _run(self, jobs: Sequence[Job], pixel_values: Any) -> Sequence[Detections | Exception]:
        return self._answers(jobs, pixel_values, attempt(self.pipeline.run, jobs, pixel_values))

    def _answers(
        self, jobs: Sequence[Job], pixel_values: Any, made: Sequence[Detections] | Exception
    ) -> Sequence[Detections | Exception]:
        """What a call made; after one that failed the error to all its frames, and serving goes on; or, where memory
        ran out, what smaller calls find."""
        if not isinstance(made, Exception):
            self._recover()
            return made
        if not is_out_of_memory(made):
            return [made] * len(jobs)
        self._since_short = 0
        self._release()
        half = len(jobs) // 2
        if half:
            self._most_frames = half
            log.warning("memory ran out for %d frames at once; calls now take at most %d", len(jobs), half)
            return [*self._run(jobs[:half], pixel_values[:half]), *self._run(jobs[half:], pixel_values[half:])]
        if self.pipeline.max_pairs > 1:
            self.pipeline.max_pairs //= 2
            log.warning(
                "memory ran out for one frame; decoder calls now take at most %d of its classes",
                self.pipeline.max_pairs,
            )
            return self._run(jobs, pixel_values)
        resolution = self.pipeline.variant.resolution
        return [MemoryError(f"there is no memory for one frame at {resolution}; serve a lower resolution")]

    def _recover(self) -> None:
        """After a while without want of memory, calls take twice as much again, of classes first."""
        self._since_short += 1
        if self._since_short < PATIENCE:
            return
        self._since_short, variant = 0, self.pipeline.variant
        if self.pipeline.max_pairs < variant.max_pairs:
            self.pipeline.max_pairs = min(2 * self.pipeline.max_pairs, variant.max_pairs)
        else:
            self._most_frames = min(2 * self._most_frames, variant.max_batch)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a call failed for lack of memory, whichever library says so."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()
