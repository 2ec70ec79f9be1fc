"""From parsed frames to detections, a batch at a time: pixels are read, then the pipeline runs.

Two models share this: the engine model (`ensemble/engine.py`), which holds the sub-models itself, and a front model
whose sub-models Triton runs (`ensemble/front.py`). A frame that cannot be answered gets its own error; the others of
its batch go on without it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ensemble.pipeline import Job, Pipeline
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import Preprocessor

Prepared = Job | Exception
"""One frame of a batch: its job, or why it cannot be answered."""


class Detector:
    """One variant's frames to detections. `read` and `detect` of different batches may run in two threads at once."""

    def __init__(self, pipeline: Pipeline, preprocess: Preprocessor) -> None:
        self.pipeline, self._preprocess = pipeline, preprocess

    def read(self, batch: list[Prepared]) -> Any:
        """Pixels uint8 [B,3,R,R] of the frames that can be read; in `batch`, a job whose frame cannot be read gives its
        place to the reason."""
        start = time.perf_counter()
        places = [i for i, item in enumerate(batch) if isinstance(item, Job)]
        jobs: Sequence[Any] = [batch[i] for i in places]
        pixel_values, sizes = self._preprocess([job.request for job in jobs])
        milliseconds = (time.perf_counter() - start) * 1e3
        for place, job, size in zip(places, jobs, sizes, strict=True):
            if isinstance(size, Exception):
                batch[place] = size
            else:
                job.frame_size = job.frame_size or size  # known already of a frame that a front model has scaled
                job.add_ms("decode", milliseconds)
        return pixel_values

    def detect(self, batch: Sequence[Prepared], pixel_values: Any) -> list[Detections | Exception]:
        """The answer to each item of `batch`, in order. What the pipeline raises is the answer to all its frames."""
        jobs = [item for item in batch if isinstance(item, Job)]
        try:
            found = iter(self.pipeline.run(jobs, pixel_values) if jobs else [])
        except Exception as error:  # the GPU or a sub-model failed: say so to the frames of this call, keep serving
            return [error if isinstance(item, Job) else item for item in batch]
        return [next(found) if isinstance(item, Job) else item for item in batch]
