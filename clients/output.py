"""Outputs: the files that results are written to (annotated videos and images, JSON lines, COCO results), and events
to webhooks."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from clients.detections import Detections
from clients.draw import annotate
from clients.fleet.webhook import Webhook
from clients.video.encode import VideoWriter
from clients.video.frames import Frame

if TYPE_CHECKING:  # the fleet's configuration reads SUFFIXES
    from clients.fleet.camera import Camera
    from clients.fleet.request import Answer

SUFFIXES = (".mp4", ".png", ".jpg", ".jsonl", ".json")
"""An annotated video, the annotated frame with the most detections, JSON lines, COCO results."""


class JsonLines:
    """A file with one JSON object per line, replaced unless `append`. Several processes may append to one file: each
    line is one write, so none is cut by another one."""

    def __init__(self, path: Path, append: bool = True) -> None:
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if append else os.O_TRUNC)
        self._file = os.open(path, mode, 0o644)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line."""
        os.write(self._file, (json.dumps(record) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


class CocoResults:
    """A JSON array of COCO result records, as pycocotools' `loadRes` reads it: `image_id` is the frame's number,
    `category_id` the index of the class in the camera's list, masks are RLE at the frame's size. The array is complete
    once it is closed.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._separator = "["

    def write(self, frame: int, found: Detections) -> None:
        """Appends the detections of one frame."""
        for item in found.to_coco(frame):
            if "segmentation" in item:
                item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
            self._file.write(f"{self._separator}\n{json.dumps(item)}")
            self._separator = ","

    def close(self) -> None:
        """Completes the array."""
        self._file.write("[]\n" if self._separator == "[" else "\n]\n")
        self._file.close()


class Drawing:
    """An annotated video of all frames, or for an image's suffix the annotated frame with the most detections."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._most = -1
        self._video = VideoWriter(path, fps) if path.suffix == ".mp4" else None

    def write(self, frame: Frame, found: Detections, tracks: Sequence[int] = ()) -> None:
        """Draws the detections of one frame, with their `tracks` [D] if there are any."""
        if self._video:
            self._video.write(annotate(frame.rgb, found, tracks=tracks))
        elif len(found) > self._most:
            self._most = len(found)
            Image.fromarray(annotate(frame.rgb, found, tracks=tracks)).save(self.path)

    def close(self) -> None:
        """Completes the video."""
        if self._video:
            self._video.close()


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


def answer_record(camera: Camera, answer: Answer) -> dict[str, Any]:
    """One frame of a fleet as plain data, whatever its outcome. `captured` is in seconds since 1970, `replaced` the
    older frames that this one replaced, `latency_ms` from capture to answer, `request_ms` the request's part of it.
    """
    frame = answer.frame
    record: dict[str, Any] = {
        "camera": camera.config.name,
        "frame": frame.index,
        "outcome": answer.outcome,
        "captured": _wall_clock(answer),
        "replaced": frame.replaced,
    }
    if answer.error:
        record["error"] = answer.error
    if answer.found is not None and answer.outcome == "answered":
        about = frame_record(frame, answer.found)
        record |= about | {"request_ms": about["latency_ms"]}
        for detection, track in zip(record["detections"], answer.tracks, strict=False):
            detection |= {"track": track} if track >= 0 else {}
        if answer.events:
            record["events"] = list(answer.events)
    return record | {"time_s": round(frame.time_s, 3), "latency_ms": round(answer.latency_ms, 2)}


class Outputs:
    """The files and webhooks of all cameras; a handler for `run_fleet`.

    `record` makes the JSON line of an answer; `append` keeps the lines that a file has already. A video plays at the
    camera's configured frame rate, else at its source's.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        record: Callable[[Camera, Answer], dict[str, Any]] = answer_record,
        append: bool = True,
    ) -> None:
        self.record = record
        self.lines: dict[Path, JsonLines] = {}
        self.coco: dict[Path, CocoResults] = {}
        self.drawings: dict[Path, Drawing] = {}  # made with the first frame, when the source's frame rate is known
        self.webhooks = {c.config.webhook: Webhook(c.config.webhook) for c in cameras if c.config.webhook}
        for path in dict.fromkeys(path for camera in cameras for path in camera.config.outputs):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".jsonl":
                self.lines[path] = JsonLines(path, append)
            elif path.suffix == ".json":
                self.coco[path] = CocoResults(path)

    async def __call__(self, camera: Camera, answer: Answer) -> None:
        found = answer.found if answer.outcome == "answered" else None
        for path in camera.config.outputs:
            if path in self.lines:
                self.lines[path].write(self.record(camera, answer))
            elif found is not None and path in self.coco:
                self.coco[path].write(answer.frame.index, found)
            elif found is not None:
                if path not in self.drawings:
                    self.drawings[path] = Drawing(path, camera.config.fps or camera.reader.source_fps)
                # drawing takes milliseconds, in which this event loop would serve no other camera
                await asyncio.to_thread(self.drawings[path].write, answer.frame, found, answer.tracks)
        if camera.config.webhook:
            for event in answer.events:
                about = {"camera": camera.config.name, "frame": answer.frame.index, "captured": _wall_clock(answer)}
                self.webhooks[camera.config.webhook].send(about | event)

    async def close(self) -> dict[str, int]:
        """Completes all files; returns how many events were sent and how many were lost."""
        files: list[JsonLines | CocoResults | Drawing] = [*self.lines.values(), *self.coco.values()]
        for file in files + list(self.drawings.values()):
            file.close()
        await asyncio.gather(*(webhook.close() for webhook in self.webhooks.values()))
        return {
            "events_sent": sum(webhook.sent for webhook in self.webhooks.values()),
            "events_lost": sum(webhook.lost for webhook in self.webhooks.values()),
        }


def _wall_clock(answer: Answer) -> float:
    """When the frame was captured, in seconds since 1970."""
    return round(time.time() - (time.monotonic() - answer.frame.captured), 3)
