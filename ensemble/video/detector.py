"""One video front model in the engine model: its sessions' frames to tracks."""

from __future__ import annotations

from ensemble.detector import Detector
from ensemble.video.pipeline import VideoPipeline


class VideoDetector(Detector):
    """As the `Detector` of its pictures, but with a memory: of a batch, every session has one frame at most, and the
    sessions of frames that fail go on from the frame before."""

    def __init__(self, detector: Detector, video: VideoPipeline) -> None:
        super().__init__(detector.pipeline, detector._preprocess, detector._release, video)
        self.video = video
