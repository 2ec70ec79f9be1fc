"""Answers as plain data: the lines of `.jsonl` outputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clients.conversation import Tracks
from clients.detections import Detections
from clients.video.frames import Frame

if TYPE_CHECKING:  # the fleet's configuration reads this package
    from clients.fleet.camera import Camera
    from clients.fleet.request import Answer


STATES = ("new", "tracked", "confirmed")
"""What `Tracks.track_states` are called."""


def frame_record(frame: Frame, found: Detections, tracks: Sequence[int] = ()) -> dict[str, Any]:
    """One frame as plain data: boxes in pixels, masks as COCO RLE of `mask_size` pixels a side. `tracks` [D] are ids,
    -1 for none."""
    boxes = found.boxes_in_pixels.tolist()
    masks = [rle["counts"].decode() for rle in found.rle] if found.has_masks else [None] * len(found)
    record: dict[str, Any] = {
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
    for detection, track in zip(record["detections"], tracks, strict=False):
        detection |= {"track": track} if track >= 0 else {}
    if isinstance(found, Tracks):
        told = zip(found.track_scores.tolist(), found.track_states.tolist(), strict=True)
        for detection, (score, state) in zip(record["detections"], told, strict=True):
            detection |= {"track_score": round(score, 4), "state": STATES[state]}
        record |= {"hidden": found.hidden_ids.tolist(), "dropped": found.dropped_objects}
    return record


def answer_record(camera: Camera, answer: Answer) -> dict[str, Any]:
    """One frame of a fleet as plain data, whatever its outcome. `captured` is in seconds since 1970, `replaced` the
    older frames that this one replaced, `latency_ms` from capture to answer, `request_ms` the request's part of it. A
    frame that was not sent, since nothing moved, is `unchanged`, and has what was found in the frame `answered_frame`.
    """
    frame = answer.frame
    record: dict[str, Any] = {
        "camera": camera.config.name,
        "frame": frame.index,
        "outcome": answer.outcome,
        "captured": wall_clock(answer),
        "replaced": frame.replaced,
    }
    if answer.error:
        record["error"] = answer.error
    if answer.found is not None and answer.usable:
        about = frame_record(frame, answer.found, answer.tracks)
        if answer.unchanged:
            record |= {"unchanged": True, "answered_frame": answer.answered_frame}
            del about["stage_ms"]  # the server had no part in it
        else:
            record["request_ms"] = about["latency_ms"]
        record |= about
        if answer.events:
            record["events"] = list(answer.events)
    return record | {"time_s": round(frame.time_s, 3), "latency_ms": round(answer.latency_ms, 2)}


def wall_clock(answer: Answer) -> float:
    """When the frame was captured, in seconds since 1970."""
    return round(time.time() - (time.monotonic() - answer.frame.captured), 3)
