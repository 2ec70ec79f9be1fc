"""Where what was found is written: frames with their detections in; a video, a picture or lines of JSON out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clients.detections import Detections
from clients.draw import annotate
from clients.video.encode import VideoWriter
from clients.video.frames import Frame


class Output:
    """Where annotated frames go, by the suffix of a path: a video, the picture with the most detections, or a JSON line
    per frame.
    """

    suffixes = (".mp4", ".png", ".jpg", ".jsonl")

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._most = -1
        self._file = path.open("w") if path.suffix == ".jsonl" else None
        self._video = VideoWriter(path, fps) if path.suffix == ".mp4" else None

    def write(self, frame: Frame, found: Detections, tracks: Sequence[int] = ()) -> None:
        """Adds one frame and what was found in it, with the `tracks` [D] of what is followed."""
        if self._file:
            self._file.write(json.dumps(frame_record(frame, found)) + "\n")
        elif self._video:
            self._video.write(annotate(frame.rgb, found, tracks=tracks))
        elif len(found) > self._most:
            self._most = len(found)
            Image.fromarray(annotate(frame.rgb, found, tracks=tracks)).save(self.path)

    def close(self) -> None:
        for thing in (self._file, self._video):
            if thing:
                thing.close()


def frame_record(frame: Frame, found: Detections) -> dict[str, Any]:
    """One frame as plain data: boxes in pixels, masks as COCO RLE of `mask_size` pixels a side."""
    boxes = found.boxes_in_pixels.tolist()
    masks = [rle["counts"].decode() for rle in found.rle] if found.has_masks else [None] * len(found)
    return {
        "frame": frame.index,
        "time_s": round(frame.time_s, 3),
        "size": list(found.frame_size),
        "latency_ms": round(found.latency_ms, 2),
        "stage_ms": {stage: round(ms, 2) for stage, ms in found.stage_ms.items()},
        "mask_size": found.mask_size,
        "detections": [
            {"label": label, "score": round(float(score), 4), "box": [round(c, 1) for c in box]}
            | ({"mask": mask} if mask else {})
            for label, score, box, mask in zip(found.labels, found.scores, boxes, masks, strict=True)
        ],
    }
