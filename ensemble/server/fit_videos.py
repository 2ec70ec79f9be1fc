"""Videos in a stated amount of memory: at which resolutions of a repository they fit.

The detector's resolution counts more than the tracker's, and both more than how many frames are computed at once, or
where the text encoder is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ensemble.server.memory import Need
from ensemble.server.needs import need_of
from ensemble.server.repository import Served, adjusted
from ensemble.server.requirements import ServerError
from ensemble.server.videos import videos_of
from ensemble.spec import MB
from ensemble.video.sizes import slot_bytes

ROUNDING_MB = 1e-6
"""So that a number of slots becomes megabytes and the same number of slots again."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many videos at a time, each of at most so many objects at a time."""

    videos: int
    objects: int


@dataclass(frozen=True, slots=True)
class Fit:
    """What so many videos are served with, and the memory that it is reckoned to take; None on the CPU."""

    resolution: int
    tracker_resolution: int
    max_batch: int
    video_memory_mb: float
    text_encoder: str  # one of start_check.TEXT_ENCODER
    need: Need | None

    def settings(self) -> dict[str, Any]:
        """Arguments of `EmbeddedServer`."""
        return {
            "resolutions": [self.resolution],
            "tracker_resolution": self.tracker_resolution,
            "video_memory_mb": self.video_memory_mb,
            "text_encoder": self.text_encoder,
            "front": {"max_batch": self.max_batch},
        }


def fit(known: Sequence[Served], load: Load, memory_mb: float | None, text_encoder: str = "auto") -> Fit:
    """Of a repository with all those `known`: the first in the order of `candidates` that needs at most `memory_mb`, or
    simply the first where that is None.

    Raises ServerError, with the least that is needed, where none does.
    """
    found = list(candidates(known, load, text_encoder))
    if not found:
        raise ServerError(
            "expected a repository with a tracker for videos, got one for pictures alone; write it again with"
            " sam3-export --video"
        )
    for one in found:
        if memory_mb is None or one.need is None or one.need.total <= memory_mb:
            return one
    least = min((one for one in found if one.need), key=lambda one: one.need.total if one.need else 0.0)
    raise ServerError(
        f"expected {load.videos} videos of {load.objects} objects to fit into {memory_mb:,.0f} MB, got at least"
        f" {least.need}, with the detector at {least.resolution} and the tracker at {least.tracker_resolution}; take"
        " fewer objects or videos at a time, or export a lower resolution"
    )


def candidates(known: Sequence[Served], load: Load, text_encoder: str = "auto") -> Iterator[Fit]:
    """All pairs of a detector and a tracker that is not finer, the finest first; each with as many frames at once as
    there are videos, then with the text encoder on the CPU where it may be there, then with half as many frames, and so
    on."""
    able = [one for one in known if one.variant.tracker]
    for detector in able:
        for tracking in (one for one in able if one.variant.resolution <= detector.variant.resolution):
            bank_mb = load.videos * load.objects * slot_bytes(tracking.variant) / MB + ROUNDING_MB
            frames = min(load.videos, detector.variant.max_batch)
            ways = [(frames, text_encoder)]
            if text_encoder == "auto" and detector.on_gpu and detector.text_encoder_cpu.path.is_file():
                ways.append((frames, "cpu"))
            ways += [(frames >> n, ways[-1][1]) for n in range(1, frames.bit_length())]
            for frames, where in ways:
                (one,) = adjusted([detector], {"max_batch": frames})
                if where == "cpu" and one.on_gpu:
                    one = one.with_text_encoder_on_cpu()
                served = videos_of([one], known, bank_mb, tracking.variant.resolution)
                need = need_of([one], None, served) if one.on_gpu else None
                yield Fit(one.variant.resolution, tracking.variant.resolution, frames, bank_mb, where, need)
