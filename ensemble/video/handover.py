"""The message between a video front model and the engine model: that of pictures, and the frames' sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensemble import handover
from ensemble.handover import expect, split, within
from ensemble.postprocess import Detections
from ensemble.video.request import Asked, Seeds
from ensemble.video.turns import Tracks, VideoJob
from ensemble.video.variant import MAX_DETECT_EVERY, MAX_OBJECTS, STAGES, VideoVariant

STARTS, ENDS = 1, 2
"""Bits of `session_flags`."""
_OF_TRACKS = ("track_ids", "track_scores", "track_states")
_OF_FRAME = {"frame_index": np.int32, "dropped_objects": np.int32, "session_bytes": np.int64}


def pack_jobs(front: str, jobs: Sequence[VideoJob], variant: VideoVariant) -> dict[str, np.ndarray]:
    """The engine model's inputs."""
    asked = [job.asked for job in jobs]
    seeds = [a.seeds for a in asked if a.seeds is not None]
    empty = np.zeros((0, variant.tracking.mask_size, variant.tracking.mask_row_bytes), np.uint8)
    return {
        **handover.pack_jobs(front, jobs, variant.detector.resolution),
        "sessions": np.array([a.session for a in asked], np.uint64).view(np.int64),
        "session_flags": np.array([a.start * STARTS | a.end * ENDS for a in asked], np.int32),
        "detect_every": np.array([a.detect_every for a in asked], np.int32),
        "max_objects": np.array([a.max_objects for a in asked], np.int32),
        "first_id": np.array([a.first_id for a in asked], np.int64),
        "seeds_per_frame": np.array([len(a.seeds.ids) if a.seeds else 0 for a in asked], np.int32),
        "seed_ids": np.concatenate([np.zeros(0, np.int64), *(s.ids for s in seeds)]),
        "seed_classes": np.concatenate([np.zeros(0, np.int32), *(s.class_ids for s in seeds)]),
        "seed_masks": np.concatenate([empty, *(s.bits for s in seeds)]),
    }


def pack_closed(front: str, sessions: Sequence[int], variant: VideoVariant) -> dict[str, np.ndarray]:
    """The engine model's inputs where sessions end and there are no frames."""
    closed = np.array(sessions, np.uint64).view(np.int64)
    return {**handover.pack_jobs(front, [], variant.detector.resolution), "closed": closed}


def unpack_jobs(arrays: Mapping[str, np.ndarray], variant: VideoVariant) -> list[VideoJob]:
    """The jobs again. Raises RequestError where the arrays do not fit together."""
    jobs = handover.unpack_jobs(arrays, variant.detector)
    missing = [name for name in ("sessions", "session_flags", *_COUNTS, *_SEEDS) if name not in arrays]
    expect(not missing, "all tensors of a session", f"none of {', '.join(missing)}")
    for name in ("sessions", "session_flags", *_COUNTS):
        expect(len(arrays[name]) == len(jobs), f"{name} of {len(jobs)} frames", len(arrays[name]))
    expect(within(arrays["session_flags"], 0, STARTS | ENDS), "session_flags of 0 to 3", "others")
    expect(within(arrays["detect_every"], 1, MAX_DETECT_EVERY), f"detect_every of 1 to {MAX_DETECT_EVERY}", "others")
    expect(within(arrays["max_objects"], 1, MAX_OBJECTS), f"max_objects of 1 to {MAX_OBJECTS}", "others")
    counts, v = arrays["seeds_per_frame"], variant.tracking
    total = int(counts.sum())
    expect((counts >= 0).all() and (counts <= arrays["max_objects"]).all(), "as many seeds as objects at most", counts)
    shape = (total, v.mask_size, v.mask_row_bytes)
    expect(arrays["seed_masks"].shape == shape, f"seed_masks {shape}", arrays["seed_masks"].shape)
    expect(len(arrays["seed_ids"]) == len(arrays["seed_classes"]) == total, f"{total} seeds", len(arrays["seed_ids"]))
    parts = zip(*(split(arrays[name], counts) for name in _SEEDS), strict=True)
    made = []
    for i, (job, seeds) in enumerate(zip(jobs, parts, strict=True)):
        expect(within(seeds[1], 0, len(job.tokens) - 1), f"seed_classes of 0 to {len(job.tokens) - 1}", "others")
        flags = int(arrays["session_flags"][i])
        asked = Asked(
            session=int(arrays["sessions"][i : i + 1].view(np.uint64)[0]),
            start=bool(flags & STARTS),
            end=bool(flags & ENDS),
            detect_every=int(arrays["detect_every"][i]),
            max_objects=int(arrays["max_objects"][i]),
            first_id=max(1, int(arrays["first_id"][i])),
            seeds=Seeds(*seeds) if counts[i] else None,
        )
        made.append(VideoJob(job.request, job.tokens, job.frame_size, asked=asked))
    return made


def pack_answers(
    jobs: Sequence[VideoJob], answers: Sequence[Detections | Exception], empty_masks: np.ndarray
) -> dict[str, np.ndarray]:
    """The engine model's outputs."""
    found = [answer if isinstance(answer, Tracks) else None for answer in answers]
    tracks = [answer for answer in found if answer is not None]
    told = {name: np.array([getattr(a, name, 0) for a in found], dtype) for name, dtype in _OF_FRAME.items()}
    empty = Tracks(*_NOTHING, empty_masks)
    joined = {
        name: np.concatenate([getattr(a, name) for a in (empty, *tracks)]) for name in (*_OF_TRACKS, "hidden_ids")
    }
    return {
        **handover.pack_answers(jobs, answers, empty_masks, STAGES),
        **told,
        **joined,
        "hidden_per_frame": np.array([len(a.hidden_ids) if a else 0 for a in found], np.int32),
    }


def unpack_answers(arrays: Mapping[str, np.ndarray], jobs: Sequence[VideoJob]) -> list[Detections | Exception]:
    """The answer to each job, whose size and stage times are set."""
    plain = handover.unpack_answers(arrays, jobs, STAGES)
    own = zip(*(split(arrays[name], arrays["found"]) for name in _OF_TRACKS), strict=True)
    hidden = split(arrays["hidden_ids"], arrays["hidden_per_frame"])
    answers: list[Detections | Exception] = []
    for i, (answer, tracks, gone) in enumerate(zip(plain, own, hidden, strict=True)):
        if isinstance(answer, Exception):
            answers.append(answer)
            continue
        told: dict[str, Any] = {name: int(arrays[name][i]) for name in _OF_FRAME}
        told |= dict(zip(_OF_TRACKS, tracks, strict=True))
        shared = (answer.boxes, answer.scores, answer.class_ids, answer.presence, answer.mask_bits)
        answers.append(Tracks(*shared, hidden_ids=gone, **told))
    return answers


_COUNTS = ("detect_every", "max_objects", "first_id", "seeds_per_frame")
_SEEDS = ("seed_ids", "seed_classes", "seed_masks")
_NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32))
