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

from ensemble import splitting
from ensemble.limits import is_out_of_memory
from ensemble.pipeline import Job, Pipeline
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import Preprocessor, Size, joined
from ensemble.request import FrameRequest
from ensemble.splitting import Flow, Splitter

log = logging.getLogger(__name__)
Prepared = Job | Exception
"""One frame of a batch: its job, or why it cannot be answered."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch whose features are under way: its items, and what has been begun of the jobs among them."""

    batch: Sequence[Prepared]
    jobs: splitting.Begun


class Detector:
    """One variant's frames to detections. `read` and `detect` of different batches may run in two threads at once."""

    def __init__(
        self,
        pipeline: Pipeline,
        preprocess: Preprocessor,
        release: Callable[[], None] = lambda: None,
        flow: Flow | None = None,
    ) -> None:
        """`release` gives back memory that is kept for the next calls, in either thread. `flow` computes the batches,
        where the pipeline is only part of that."""
        self.pipeline, self._preprocess, self._release = pipeline, preprocess, release
        self._splitter = Splitter(flow or pipeline, pipeline.variant.max_batch, release)

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
        """The answer to each item of `batch`, in order; see `Splitter.complete`."""
        return self.complete(self.begin(batch, pixel_values))

    def begin(self, batch: Sequence[Prepared], pixel_values: Any) -> Begun:
        """Starts a batch: on a GPU, work is launched and not waited for. `complete` comes before the next `begin`."""
        jobs = [item for item in batch if isinstance(item, Job)]
        return Begun(batch, self._splitter.begin(jobs, pixel_values))

    def complete(self, begun: Begun) -> list[Detections | Exception]:
        """The answer to each item of the batch, in order."""
        found = iter(self._splitter.complete(begun.jobs))
        return [next(found) if isinstance(item, Job) else item for item in begun.batch]
