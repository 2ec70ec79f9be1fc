"""Which video front models a server has, and how many objects the memory that they may take has room for.

There is one for each resolution whose repository has a tracker. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ensemble.server.repository import Artifact, Served
from ensemble.server.requirements import ServerError
from ensemble.spec import MB, Variant
from ensemble.tracker_interfaces import sizes as tracker_sizes
from ensemble.video.sizes import slot_bytes
from ensemble.video.variant import VideoVariant

DEFAULT_MB = 512.0
"""What is remembered of the objects of all videos, where nobody says how much."""


@dataclass(frozen=True)
class VideoServed:
    """One video front model: its variant, the detector's and the tracker's models, and its slots."""

    variant: VideoVariant
    detector: Served
    tracking: Served
    slots: int

    @property
    def bank_mb(self) -> float:
        """Megabytes that all objects together are remembered in."""
        return self.slots * slot_bytes(self.tracking.variant) / MB

    @property
    def call(self) -> Variant:
        """The tracker, with no more objects in one call than there are slots."""
        tracking = self.tracking.variant
        most = min(self.slots, tracker_sizes(tracking).max_objects)
        return replace(tracking, tracker=replace(tracker_sizes(tracking), max_objects=most))

    @property
    def own(self) -> tuple[Artifact, ...]:
        """The sub-models beside those for pictures."""
        return (
            self.tracking.tracker if self.variant.shares_trunk else (self.tracking.artifacts[0], *self.tracking.tracker)
        )

    @property
    def engines(self) -> dict[str, str]:
        """Of each sub-model by part."""
        parts = zip(self.tracking.variant.tracker_parts, self.tracking.tracker, strict=True)
        return {**self.detector.engines, **{model.part: artifact.engine for model, artifact in parts}}

    @property
    def artifacts(self) -> tuple[tuple[str, Artifact], ...]:
        """Every sub-model's name and where it lies."""
        pairs = zip(self.detector.variant.sub_models, self.detector.artifacts, strict=True)
        return (*((model.name, artifact) for model, artifact in pairs), *((a.model, a) for a in self.own))


def videos_of(
    served: Sequence[Served], known: Sequence[Served], memory_mb: float | None, tracker_resolution: int | None
) -> list[VideoServed]:
    """The video front models beside the front models `served`, of a repository with all those `known`. `memory_mb` is
    shared evenly; none are served for 0, and DEFAULT_MB are taken for None. The tracker works at
    `tracker_resolution`, or at the detector's for None. Raises ServerError for what cannot be."""
    able = [one for one in served if one.variant.tracker]
    if not able:
        if memory_mb or tracker_resolution:
            raise ServerError(
                "expected a repository with a tracker for videos, got one for pictures alone; write it again with"
                " sam3-export --video"
            )
        return []
    if memory_mb == 0:
        return []
    share = (DEFAULT_MB if memory_mb is None else memory_mb) / len(able)
    found = []
    for one in able:
        tracking = _tracking(one, known, tracker_resolution)
        try:
            variant = VideoVariant(one.variant, tracking.variant)
        except ValueError as error:
            raise ServerError(str(error)) from None
        size = slot_bytes(tracking.variant)
        slots = int(share * MB // size)
        if slots < 1:
            raise ServerError(
                f"{variant.front_name}: expected at least {size / MB:.1f} MB for one object, got {share:.1f} MB; give a"
                " larger --video-memory, or a lower --tracker-resolution"
            )
        found.append(VideoServed(variant, one, tracking, slots))
    return found


def is_direct(asked: bool | None, served: Sequence[Served], sub_models: bool, videos: bool) -> bool:
    """Whether clients call the engine model: as asked; where nobody says, for one resolution on GPUs. Raises
    ServerError where they cannot."""
    alone = len(served) == 1 and not sub_models and not videos
    if asked and not alone:
        beside = ", --sub-models" * sub_models + ", videos (--video-memory 0 leaves them out)" * videos
        raise ServerError(
            "clients can call the engine model of one resolution that holds its sub-models and serves no videos, got"
            f" {len(served)} resolutions{beside}; leave out --direct"
        )
    return alone and served[0].on_gpu if asked is None else asked


def _tracking(one: Served, known: Sequence[Served], resolution: int | None) -> Served:
    if resolution is None or resolution == one.variant.resolution:
        return one
    there = [s for s in known if s.variant.tracker and s.variant.resolution == resolution]
    if not there:
        have = ", ".join(str(s.variant.resolution) for s in known if s.variant.tracker)
        raise ServerError(f"expected a tracker's resolution of this repository ({have}), got {resolution}")
    return there[0]
