"""One video front model in the engine model: its sessions' frames to tracks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ensemble.detector import Detector, Prepared
from ensemble.pipeline import Job, Pipeline
from ensemble.preprocess.cpu import attempt
from ensemble.video.pipeline import VideoPipeline
from ensemble.video.turns import Begun, Tracks, VideoJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """A batch whose features are under way: its items, the jobs among them, and the pipeline's state or why it has
    none."""

    batch: Sequence[Prepared]
    jobs: Sequence[VideoJob]
    begun: Begun | Exception | None


class VideoDetector:
    """As a `Detector`, which reads the frames and knows the names, but with a memory: the batches of one thread."""

    def __init__(self, detector: Detector, video: VideoPipeline) -> None:
        self.detector, self.video = detector, video
        self.read, self.knows, self.encode = detector.read, detector.knows, detector.encode

    @property
    def pipeline(self) -> Pipeline:
        return self.detector.pipeline

    def begin(self, batch: Sequence[Prepared], pixel_values: Any) -> Started:
        """Starts a batch, of which every session has one frame at most. `complete` comes before the next `begin`."""
        jobs = [item for item in batch if isinstance(item, VideoJob)]
        return Started(batch, jobs, attempt(self.video.begin, jobs, pixel_values) if jobs else None)

    def complete(self, started: Started) -> list[Tracks | Exception]:
        """The answer to each item of the batch, in order; what fails in the flow is the answer to all its frames, whose
        sessions go on from the frame before."""
        begun = started.begun
        made: Any = begun
        if isinstance(begun, Begun):
            made = attempt(self.video.complete, begun)
        if isinstance(made, Exception):
            log.error("a batch of videos failed", exc_info=made)
        answers = iter([made] * len(started.jobs) if isinstance(made, Exception) else made or [])
        return [next(answers) if isinstance(item, Job) else item for item in started.batch]
