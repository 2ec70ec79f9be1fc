"""Object tracking: ids that stay the same from frame to frame.

Each class has its own ByteTrack, from the package supervision, since a dog never becomes a person. The package comes
with the extra `tracks`; a camera without tracks does not need it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.detections import Detections

LOST_S = 2.0
"""An object that is not seen for this long gets a new id when it returns."""


class Tracker:
    """The tracks of one camera with `fps` frames per second.

    `threshold` is the lowest score that starts a track; detections below it only continue one. `lost_s` is in seconds.
    Raises ImportError, naming the extra, if supervision is missing.
    """

    def __init__(self, fps: float, threshold: float = 0.5, lost_s: float = LOST_S) -> None:
        self.fps, self.threshold, self.lost_s = fps, threshold, lost_s
        self._supervision = _supervision()
        self._by_class: dict[str, Any] = {}
        self._ids: dict[tuple[str, int], int] = {}

    def update(self, found: Detections) -> NDArray[np.int64]:
        """int64 [D]: the track of each detection, numbered from 1 across all classes, -1 where there is none yet."""
        ids = np.full(len(found), -1, np.int64)
        labels = np.array(found.labels, dtype=object)
        for name in dict.fromkeys((*self._by_class, *found.labels)):  # a class without detections ages its tracks
            index = np.flatnonzero(labels == name)
            tracked = self._tracker(name).update_with_detections(
                self._supervision.Detections(
                    xyxy=found.boxes_in_pixels[index], confidence=found.scores[index], data={"index": index}
                )
            )
            for where, track in zip(tracked.data.get("index", ()), tracked.tracker_id, strict=False):
                ids[int(where)] = self._ids.setdefault((name, int(track)), len(self._ids) + 1)
        return ids

    def _tracker(self, name: str) -> Any:
        if name not in self._by_class:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the class moves to the package trackers, which needs NumPy 2
                # ByteTrack starts tracks 0.1 above its threshold, and scales its buffer by frame_rate / 30
                self._by_class[name] = self._supervision.ByteTrack(
                    track_activation_threshold=max(self.threshold - 0.1, 0.0),
                    lost_track_buffer=max(1, round(self.lost_s * self.fps)),
                    frame_rate=30,
                    minimum_matching_threshold=0.9,
                )
        return self._by_class[name]


def _supervision() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that OpenCV is missing: nothing here needs it
            import supervision
    except ImportError as error:
        raise ImportError(
            "tracks need the package supervision below 0.31: pip install 'sam3-triton[tracks]'"
        ) from error
    if not hasattr(supervision, "ByteTrack"):
        raise ImportError(
            f"tracks need supervision.ByteTrack, which {supervision.__version__} no longer has: pip install"
            " 'sam3-triton[tracks]'"
        )
    return supervision
