"""What the engine model holds of one front model, and how batches come from it and answers go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble import handover
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.spec import Variant


@dataclass(frozen=True, slots=True)
class Front:
    """What belongs to one front model: its detector, and what an answer without masks looks like."""

    detector: Any  # a Detector, or a VideoDetector
    metrics: Any
    empty_masks: np.ndarray
    encodes_ahead: bool = False
    """The text encoder is on the CPU and the rest on a GPU: new names are encoded while others are computed."""

    @property
    def variant(self) -> Variant:
        return self.detector.pipeline.variant

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> list[Job]:
        """The jobs of a batch that the front model hands over."""
        return handover.unpack_jobs(arrays, self.variant)

    def pack(self, jobs: Sequence[Any], answers: Sequence[Detections | Exception]) -> dict[str, np.ndarray]:
        """What the front model gets for them."""
        return handover.pack_answers(jobs, answers, self.empty_masks)

    def close(self, sessions: np.ndarray) -> None:
        """Ends sessions of videos, int64 ids; of pictures there are none."""
