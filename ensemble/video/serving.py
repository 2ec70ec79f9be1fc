"""The engine model's part of a video front model, opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble.detector import Detector
from ensemble.engine_front import Front
from ensemble.postprocess import Detections
from ensemble.video import handover
from ensemble.video.arrays import arrays_of
from ensemble.video.bank import Bank
from ensemble.video.detector import VideoDetector
from ensemble.video.metrics import VideoMetrics
from ensemble.video.pipeline import VideoPipeline
from ensemble.video.sessions import Sessions
from ensemble.video.sizes import slot_bytes
from ensemble.video.squares import Smaller
from ensemble.video.variant import VideoVariant


@dataclass(frozen=True, slots=True)
class VideoFront(Front):
    """As `Front`, of a video front model."""

    @property
    def video(self) -> VideoVariant:
        return self.detector.video.variant

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> list[Any]:
        return handover.unpack_jobs(arrays, self.video)

    def pack(self, jobs: Sequence[Any], answers: Sequence[Detections | Exception]) -> dict[str, np.ndarray]:
        return handover.pack_answers(jobs, answers, self.empty_masks)

    def close(self, sessions: np.ndarray) -> None:
        for number in sessions.view(np.uint64).tolist():
            self.detector.video.sessions.end(number)


def open_video_front(
    name: str,
    told: Mapping[str, Any],
    detector: Detector,
    engines: Mapping[str, str],
    device_id: int | None,
    encodes_ahead: bool,
) -> VideoFront:
    """`told` has the video's `variant` and `slots`, the objects that all its sessions may have together."""
    variant = VideoVariant.from_dict(told["variant"])
    tracking, slots = variant.tracking, int(told["slots"])
    bank = Bank(tracking, slots, arrays_of(engines["tracker_step"], device_id))
    sessions = Sessions(name, slots, slot_bytes(tracking))
    video = VideoPipeline(variant, detector.pipeline, bank, sessions, Smaller(tracking.resolution, device_id))
    empty = np.zeros((0, tracking.mask_size, tracking.mask_row_bytes), np.uint8)
    return VideoFront(VideoDetector(detector, video), VideoMetrics(name, video), empty, encodes_ahead)
