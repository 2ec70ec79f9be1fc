"""What serves videos at one resolution: the detector's variant, and the tracker's, which may be of a lower one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ensemble.records import Axis, ModelSpec, TensorSpec
from ensemble.spec import Variant

STAGES = (
    *("decode", "queue", "text", "vision", "track", "geometry", "decoder", "masks"),
    *("follow", "memory", "pack", "total"),
)
"""Order of `stage_ms` of a video's answers. `track` is the tracker's step, `follow` says who is who, `memory` is what
is remembered of the frame."""
NEW, TRACKED, CONFIRMED = range(3)
"""`track_states`: began in this frame; was carried on by the tracker; the same, and the detector agrees."""
MAX_OBJECTS, MAX_DETECT_EVERY = 256, 1000
"""Largest `max_objects` and `detect_every` of a session."""
DEFAULT_OBJECTS, DEFAULT_DETECT_EVERY = 16, 1


@dataclass(frozen=True)
class VideoVariant:
    """A detector and a tracker of the same checkpoint. Raises ValueError where they do not go together."""

    detector: Variant
    tracking: Variant

    def __post_init__(self) -> None:
        if self.tracking.tracker is None:
            raise ValueError(
                f"{self.tracking.front_name} has no tracker; write its repository with sam3-export --video"
            )
        if self.tracking.resolution > self.detector.resolution:
            raise ValueError(
                f"expected a tracker of at most the detector's {self.detector.resolution} pixels, got"
                f" {self.tracking.resolution}"
            )
        if (self.tracking.checkpoint, self.tracking.precision) != (self.detector.checkpoint, self.detector.precision):
            raise ValueError(
                f"expected a tracker of the detector's checkpoint and precision, got {self.tracking.checkpoint.name} in"
                f" {self.tracking.precision} beside {self.detector.checkpoint.name} in {self.detector.precision}"
            )

    @property
    def front_name(self) -> str:
        """`sam3_video_r<resolution>[_t<tracker's>][_<precision>]`."""
        own = self.detector.front_name.replace("sam3_r", "sam3_video_r", 1)
        if self.shares_trunk:
            return own
        resolution = f"r{self.detector.resolution}"
        return own.replace(resolution, f"{resolution}_t{self.tracking.resolution}", 1)

    @property
    def shares_trunk(self) -> bool:
        """Whether the tracker reads the detector's image transformer."""
        return self.tracking.resolution == self.detector.resolution

    @property
    def max_batch(self) -> int:
        return self.detector.max_batch

    @cached_property
    def sub_models(self) -> tuple[ModelSpec, ...]:
        """All that are called: the detector's, the tracker's, and where they differ the tracker's own vision
        encoder."""
        own = () if self.shares_trunk else (self.tracking.vision_encoder,)
        return (*self.detector.sub_models, *own, *self.tracking.tracker_parts)

    @cached_property
    def front(self) -> ModelSpec:
        """What a client sends and gets: the detector's front model, without exemplar boxes, and what a session needs
        more. The session's id and where it begins and ends are Triton's own: sequence id, start and end.
        """
        v = self.tracking
        objects, many = Axis("objects", 0, 8, 2**31 - 1), Axis("n", 0, 1, 2**31 - 1)
        masks, detector = (objects, v.mask_size, v.mask_row_bytes), self.detector.front
        rows, row = Axis("mask_height", 0, v.mask_size, 2**31 - 1), Axis("mask_row", 0, v.mask_row_bytes, 2**31 - 1)
        sent = ("image", "frame", "classes", "threshold", "mask_format", "max_detections")
        own = {
            "mask_bits": TensorSpec("mask_bits", "UINT8", masks),
            "stage_ms": TensorSpec("stage_ms", "FP32", (len(STAGES),)),
        }
        return ModelSpec(
            self.front_name,
            "front",
            inputs=(
                *(tensor for tensor in detector.inputs if tensor.name in sent),
                TensorSpec("detect_every", "INT32", (1,), optional=True),  # frames from one detection to the next
                TensorSpec("max_objects", "INT32", (1,), optional=True),  # at the start: most objects at a time
                TensorSpec("first_id", "INT64", (1,), optional=True),  # at the start: least id of new objects
                TensorSpec("seed_ids", "INT64", (many,), optional=True),  # objects to go on with, at the start
                TensorSpec("seed_classes", "INT32", (many,), optional=True),  # index into `classes`
                TensorSpec("seed_masks", "UINT8", (objects, rows, row), optional=True),  # packed as `mask_bits` are
            ),
            outputs=(
                *(own.get(tensor.name, tensor) for tensor in detector.outputs),
                TensorSpec("track_ids", "INT64", (objects,)),  # the same for one object in all frames
                TensorSpec("track_scores", "FP32", (objects,)),  # probability that the object is in the frame
                TensorSpec("track_states", "INT32", (objects,)),  # NEW, TRACKED or CONFIRMED
                TensorSpec("hidden_ids", "INT64", (many,)),  # followed and not shown: hidden, or doubted
                TensorSpec("frame_index", "INT32", (1,)),  # frames of this session before this one
                TensorSpec("dropped_objects", "INT32", (1,)),  # new objects of this frame that had no room
                TensorSpec("session_bytes", "INT64", (1,)),  # what the session's objects may take of the memory
            ),
            ragged=True,
            front_batch=self.max_batch,
        )

    def to_dict(self) -> dict[str, Any]:
        return {"detector": self.detector.to_dict(), "tracking": self.tracking.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VideoVariant:
        """The inverse of `to_dict`."""
        return cls(Variant.from_dict(data["detector"]), Variant.from_dict(data["tracking"]))


def is_video_name(name: str) -> bool:
    """Whether a model name is a video front model's."""
    return name.startswith("sam3_video_r")
