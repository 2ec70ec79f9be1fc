"""What is said and heard in a session, without a connection: requests with what was seen last, and `Tracks`."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from clients.detections import Detections
from clients.errors import InvalidRequest, ModelNotFound, RequestTimeout, Sam3ServerError, ServerUnavailable
from clients.message import Image, as_tensors, fields_of, image_and_frame, outputs_of, utf8
from ensemble.records import ModelSpec
from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD, Variant
from ensemble.spec import Tracker as TrackerSizes
from ensemble.video.variant import DEFAULT_DETECT_EVERY, DEFAULT_OBJECTS, STAGES, VideoVariant, is_video_name

_ANY = Variant(tracker=TrackerSizes())
FRONT: ModelSpec = VideoVariant(_ANY, _ANY).front
"""Names, dtypes and ranks of a video front model: the same at every resolution, only the mask size differs."""
LOST = ("must specify the START flag", "begin it anew")
"""What Triton and the video front model say of a session that they do not know."""
SESSION_HEADER = "sam3-session"
"""Tells a proxy before several servers which requests belong to one session (`deploy/envoy.yaml`)."""
_PER_TRACK = ("track_ids", "track_scores", "track_states")


class SessionOptions(TypedDict, total=False):
    """The options of a session. `model` is a video front model's name; `max_objects` how many objects are followed at a
    time; the detector looks at each `detect_every`-th frame; `objects` are those of an earlier session, or whatever
    else has ids and masks of this model's size, with which it begins; the others are as in
    `clients.message.build_request`."""

    model: str | None
    max_objects: int
    detect_every: int
    threshold: float | None
    mask_format: str
    max_detections: int | None
    objects: Tracks | None


@dataclass(frozen=True, eq=False, repr=False)
class Tracks(Detections):
    """The objects that can be seen in one frame, as `Detections`, and who they are.

    `track_ids` int64 [D] are the same for an object in all frames; `track_scores` float32 [D] is the tracker's
    probability that it is in the frame, `scores` that of the last detection on it; `track_states` int32 [D] are 0
    (began in this frame), 1 (carried on) and 2 (carried on, and the detector agrees). `hidden_ids` are objects that are
    followed and cannot be seen. `dropped_objects` found no room, `session_bytes` is what the server keeps for the
    session, `restarts` how often it had to begin anew so far.
    """

    track_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    track_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    track_states: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    hidden_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    frame_index: int = 0
    dropped_objects: int = 0
    session_bytes: int = 0
    restarts: int = 0

    def where(self, mask: NDArray[np.bool_]) -> Tracks:
        """The tracks for which `mask`, bool [D], is true."""
        kept = super().where(mask)
        assert isinstance(kept, Tracks), "replace keeps the class"
        return replace(kept, **{name: getattr(self, name)[np.flatnonzero(mask)] for name in _PER_TRACK})


class Conversation:
    """What a session says next and what it has heard, without any connection."""

    def __init__(
        self,
        classes: Sequence[str],
        *,
        model: str | None = None,
        max_objects: int = DEFAULT_OBJECTS,
        detect_every: int = DEFAULT_DETECT_EVERY,
        threshold: float | None = None,
        mask_format: str = "bits",
        max_detections: int | None = None,
        objects: Tracks | None = None,
    ) -> None:
        self.look_for(classes)
        if model is not None and not is_video_name(model):
            raise InvalidRequest(
                f"a session needs a video front model, whose name begins with sam3_video_r, got {model!r}; pictures by"
                " themselves are asked with detect"
            )
        self.model, self.restarts = model, 0
        self._settings: dict[str, Any] = {
            "threshold": [DEFAULT_THRESHOLD if threshold is None else threshold],
            "mask_format": [utf8(mask_format)],
            "max_detections": [DEFAULT_MAX_DETECTIONS if max_detections is None else max_detections],
            "detect_every": [detect_every],
            "max_objects": [max_objects],
        }
        self.number = 0
        """The sequence id; 0 before the first frame."""
        self.begins = True
        self._last = objects
        self._first_id = 1 if objects is None else after(objects)

    def look_for(self, classes: Sequence[str]) -> None:
        """The classes from the next frame on. Raises InvalidRequest for a single string."""
        if isinstance(classes, (str, bytes)):
            raise InvalidRequest(
                f"classes must be a list of names, got the single string {classes!r}; write [{classes!r}]"
            )
        self.classes = tuple(classes)

    def moved(self, model: str) -> Conversation:
        """A conversation with another server, which goes on where this one is."""
        other = copy.copy(self)
        other.model = model
        other.lost()
        return other

    def lost(self) -> None:
        """The server does not know the session any more: the next frame begins another with what is known."""
        if not self.begins:
            self.restarts += 1
        self.begins = True

    def request(self, image: Image) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The arrays of the next frame, and tritonclient's arguments of the sequence."""
        encoded, frame = image_and_frame(image)
        if self.begins:
            self.number = secrets.randbits(62) + 1
        ids, owners, bits = self._seeds()
        values = {
            **self._settings,
            "image": [encoded],
            "frame": frame,
            "classes": [utf8(name) for name in self.classes],
            "first_id": [self._first_id],
            "seed_ids": ids,
            "seed_classes": owners,
            "seed_masks": bits,
        }
        return as_tensors(FRONT, values), self._sequence(sequence_start=self.begins)

    def goodbye(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The session's end, without a frame."""
        nothing = {
            "image": [b""],
            "frame": np.zeros((0, 0, 3), np.uint8),
            "classes": [],
            "first_id": [1],
            "seed_ids": [],
            "seed_classes": [],
            "seed_masks": np.zeros((0, 0, 0), np.uint8),
        }
        return as_tensors(FRONT, {**self._settings, **nothing}), self._sequence(sequence_end=True)

    def _sequence(self, **flag: bool) -> dict[str, Any]:
        return {"sequence_id": self.number, "headers": {SESSION_HEADER: str(self.number)}, **flag}

    def answer(self, output: Callable[[str], NDArray[Any] | None], latency_ms: float) -> Tracks:
        """The tracks of one response."""
        model = self.model or ""
        arrays = outputs_of(FRONT, output, model)
        told = fields_of(arrays, self.classes, STAGES, model, latency_ms)
        more: dict[str, Any] = {name: arrays[name] for name in (*_PER_TRACK, "hidden_ids")}
        more |= {name: int(arrays[name][0]) for name in ("frame_index", "dropped_objects", "session_bytes")}
        tracks = Tracks(**told, **more, restarts=self.restarts)
        self.begins, self._last = False, tracks
        self._first_id = max(self._first_id, after(tracks))
        return tracks

    def _seeds(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Ids, classes and packed masks of what was seen last, where a session begins anew and masks were sent."""
        last = self._last
        if not self.begins or last is None or not len(last) or not last.has_masks:
            return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((0, 0, 0), np.uint8)
        most = int(self._settings["max_objects"][0])
        bits = last.mask_bits if len(last.mask_bits) else np.packbits(last.masks, axis=-1)
        wanted = [i for i, name in enumerate(last.labels) if name in self.classes][:most]  # they may have changed
        owners = np.array([self.classes.index(last.labels[i]) for i in wanted], np.int32)
        return last.track_ids[wanted], owners, bits[wanted]


def after(tracks: Tracks) -> int:
    """The least id that none of these objects has."""
    return max([0, *tracks.track_ids.tolist(), *tracks.hidden_ids.tolist()]) + 1


def forget(talk: Conversation, error: Sam3ServerError) -> bool:
    """Notes what an error says of the session; whether the same frame is worth another try, as the first of a new
    one."""
    unknown = isinstance(error, InvalidRequest) and any(words in str(error) for words in LOST)
    if unknown or isinstance(error, (ServerUnavailable, RequestTimeout, ModelNotFound)):
        talk.lost()
    return unknown
