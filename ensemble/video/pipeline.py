"""The flow of a batch of frames of different videos: what is followed is carried on, the detector looks where it is
due, and what has been seen is remembered.

    frames -> vision encoder -> tracker neck -> tracker step over all objects of all sessions -> detector, for sessions
    that are due -> who is who (`ensemble/video/follow.py`) -> seeds of new objects -> memory encoder -> bank

As in `ensemble/pipeline.py`, `call` is handed in, and the flow knows neither Triton nor an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ensemble.limits import Limit
from ensemble.pipeline import FEATURES, Job, Pipeline
from ensemble.postprocess import Detections, sigmoid
from ensemble.preprocess.cpu import attempt
from ensemble.tracker_interfaces import sizes
from ensemble.video import squares
from ensemble.video.arrays import copied
from ensemble.video.bank import Bank
from ensemble.video.follow import Found, Propagated, Step
from ensemble.video.sessions import Session, Sessions
from ensemble.video.squares import Smaller
from ensemble.video.turns import Begun, Row, Stepped, Tracks, Turn, VideoJob, begin_turn
from ensemble.video.variant import VideoVariant

SURE = 10.0
"""Score logit of an object whose mask was given."""
ALL = np.uint8(255)


class VideoPipeline:
    """One video variant's flow; not for two threads at once. `pipeline` is the detector's."""

    def __init__(
        self, variant: VideoVariant, pipeline: Pipeline, bank: Bank, sessions: Sessions, smaller: Smaller
    ) -> None:
        self.variant, self.pipeline = variant, pipeline
        self.bank, self.sessions, self._smaller = bank, sessions, smaller
        self.dropped = 0
        """New objects so far that had no room in their session."""
        self._run = pipeline.run_sub_model
        self._objects = Limit(sizes(variant.tracking).max_objects, "tracker calls now take at most %d of its objects")

    @property
    def limits(self) -> Sequence[Limit]:
        return self._objects, *self.pipeline.limits

    def no_room(self, job: VideoJob) -> str:
        objects = len(job.session.follower.objects) if isinstance(job.session, Session) else 0
        return (
            f"session: expected memory for one frame at {self.variant.detector.resolution} and its {objects} objects,"
            " got too little even with one object and one class a call; follow fewer objects (max_objects), start the"
            " server with a lower --tracker-resolution, or serve a lower resolution"
        )

    # ---- first half
    def begin(self, jobs: Sequence[VideoJob], pixel_values: Any) -> Begun:
        """Finds the sessions and launches the features. A frame whose session cannot be found or begun gets the reason,
        and the others go on; whatever `call` raises passes through."""
        times: dict[str, float] = {}
        turns = [attempt(begin_turn, self.sessions, image, job) for image, job in enumerate(jobs)]
        due = [image for image, turn in enumerate(turns) if isinstance(turn, Turn) and turn.due]
        try:
            with self.pipeline.timed(times, "vision"):
                seen, features = self._vision(pixel_values, due)
            looked = [_for_detector(jobs[image], image in due) for image in seen]
            detector = self.pipeline.begin_with(looked, features, times) if due else None
        except Exception:
            _undo(turns)
            raise
        return Begun(turns, features["hidden"], seen, detector, times)

    def _vision(self, pixel_values: Any, due: list[int]) -> tuple[list[int], dict[str, Any]]:
        """Features of the frames for the tracker, and for the detector, with the frames that it gets: all of them where
        both read the same image transformer, else those where it is due."""
        detector, tracking = self.variant.detector, self.variant.tracking
        if self.variant.shares_trunk:
            wanted = (*FEATURES, "hidden") if due else ("hidden",)
            every = list(range(len(pixel_values)))
            return every, self._run(detector.vision_encoder, {"pixel_values": pixel_values}, wanted)
        small = {"pixel_values": self._smaller(pixel_values)}
        features = self._run(tracking.vision_encoder, small, ("hidden",))
        if due:
            looked = pixel_values if len(due) == len(pixel_values) else pixel_values[due]
            features |= self._run(detector.vision_encoder, {"pixel_values": looked}, FEATURES)
        return due, features

    # ---- second half
    def complete(self, begun: Begun) -> list[Tracks | Exception]:
        """The answer to each job, in order. Where something fails, all sessions of the batch are as they were before
        this frame."""
        turns = [turn for turn in begun.turns if isinstance(turn, Turn)]
        try:
            answers = iter(self._complete(begun, turns) if turns else [])
        except Exception:
            _undo(turns)
            raise
        finally:
            self.sessions.answered(turn.session for turn in turns)
        for turn in turns:
            if turn.job.asked.end:
                self.sessions.end(turn.session.number)
        return [next(answers) if isinstance(turn, Turn) else turn for turn in begun.turns]

    def _complete(self, begun: Begun, turns: list[Turn]) -> list[Tracks]:
        times = begun.times
        with self.pipeline.timed(times, "track"):
            neck = self._run(self.variant.tracking.tracker_neck, {"hidden": begun.hidden}, _TRACK)
            stepped = self._step(turns, neck)
        found = self.pipeline.complete(begun.detector) if begun.detector else [None] * len(begun.seen)
        by_image = dict(zip(begun.seen, found, strict=True))
        with self.pipeline.timed(times, "follow"):
            steps = [self._follow(turn, by_image.get(turn.image)) for turn in turns]
        with self.bank.writing():
            with self.pipeline.timed(times, "memory"):
                self._remember(stepped, {turn.image: step for turn, step in zip(turns, steps, strict=True)}, neck)
                self._seed(turns, steps, neck)
            with self.pipeline.timed(times, "pack"):
                answers = [self._answer(turn, step) for turn, step in zip(turns, steps, strict=True)]
        self.dropped += sum(step.dropped for step in steps)
        for turn in turns:
            for stage, milliseconds in times.items():
                turn.job.add_ms(stage, milliseconds)
        return answers

    def _step(self, turns: Sequence[Turn], neck: Mapping[str, Any]) -> list[Stepped]:
        """Carries all objects of all sessions on to their frames; into each turn goes what became of them."""
        rows = []
        for turn in turns:
            for known in turn.session.follower.objects:
                if known.object_id in turn.given:
                    turn.propagated[known.object_id] = turn.given[known.object_id], SURE
                else:
                    rows.append(Row(turn, known.object_id, turn.session.taken[known.object_id]))
        stepped, told = [], []
        for start in range(0, len(rows), self._objects.most):
            part = rows[start : start + self._objects.most]
            remembered = self.bank.read([row.slot for row in part], [row.turn.frame for row in part])
            inputs = {name: neck[name] for name in ("track_0", "track_1", "track_x")}
            made = self._run(
                self.variant.tracking.tracker_step,
                {**inputs, "image_index": _images(part), **remembered._asdict()},
                _STEPPED,
            )
            if start + self._objects.most < len(rows):  # the next call's outputs may lie where these do
                with self.bank.arrays.working():
                    made = {name: copied(made[name]) for name in _STEPPED}
            stepped.append(Stepped(part, made["mask_logits"], made["pointer"]))
            told += [made["mask_bits"], made["track_score"]]
        told = self.bank.arrays.host(told)  # all calls are under way before the first is waited for
        for call, bits, scores in zip(stepped, told[::2], told[1::2], strict=True):
            for row, mask, score in zip(call.rows, bits, scores.tolist(), strict=True):
                row.turn.propagated[row.object_id] = mask, score
        return stepped

    def _follow(self, turn: Turn, found: Detections | None) -> Step:
        variant, session = self.variant.tracking, turn.session
        shape = (0, variant.mask_size, variant.mask_row_bytes)
        turn.order = [known.object_id for known in session.follower.objects]
        told = [turn.propagated[object_id] for object_id in turn.order]
        propagated = Propagated(
            np.stack([bits for bits, _ in told]) if told else np.zeros(shape, np.uint8),
            np.array([score for _, score in told], np.float32),
        )
        seen = None
        if turn.due and found is not None:
            session.presence = found.presence
            bits = squares.resized(found.mask_bits, self.variant.detector.mask_size, variant.mask_size)
            seen = Found(found.class_ids, found.scores, bits)
        step = session.follower.frame(turn.frame, propagated, seen)
        for object_id in step.ended:
            session.taken.pop(object_id, None)
        return step

    def _remember(self, stepped: Sequence[Stepped], steps: Mapping[int, Step], neck: Mapping[str, Any]) -> None:
        """Writes what the tracker has seen of objects that go on and whose masks were not given."""
        given = {image: {seed.object_id for seed in step.seeds} for image, step in steps.items()}
        for part in stepped:
            keep = np.stack([steps[r.turn.image].keep[r.turn.order.index(r.object_id)] for r in part.rows])
            there = np.stack([steps[r.turn.image].there[r.turn.order.index(r.object_id)] for r in part.rows])
            memory = self._memory(neck, part.rows, part.mask_logits, keep, np.zeros_like(there), there)
            stay = [
                i
                for i, row in enumerate(part.rows)
                if row.object_id in row.turn.session.taken and row.object_id not in given[row.turn.image]
            ]
            self._write([part.rows[i] for i in stay], stay, memory, part.pointer, given=False)

    def _seed(self, turns: Sequence[Turn], steps: Sequence[Step], neck: Mapping[str, Any]) -> None:
        """Writes the masks that were given in this frame: of new objects, of old ones that the detector shows better,
        and those that a session has begun with."""
        rows, bits = [], []
        for turn, step in zip(turns, steps, strict=True):
            given = {n: mask for n, mask in turn.given.items() if n not in step.ended}
            given |= {seed.object_id: seed.bits for seed in step.seeds}
            for object_id, mask in given.items():
                if object_id not in turn.session.taken:
                    self.bank.clear(turn.session.take(object_id))
                rows.append(Row(turn, object_id, turn.session.taken[object_id]))
                bits.append(mask)
        for start in range(0, len(rows), self._objects.most):
            part, masks_ = rows[start : start + self._objects.most], np.stack(bits[start : start + self._objects.most])
            inputs = {name: neck[name] for name in ("track_0", "track_1", "track_2")}
            made = self._run(
                self.variant.tracking.tracker_seed,
                {**inputs, "image_index": _images(part), "mask_bits": masks_},
                ("pointer", "mask_logits"),
            )
            one = np.ones(len(part), np.int32)
            memory = self._memory(neck, part, made["mask_logits"], np.full_like(masks_, ALL), one, one)
            self._write(part, list(range(len(part))), memory, made["pointer"], given=True)

    def _memory(
        self,
        neck: Mapping[str, Any],
        rows: Sequence[Row],
        mask_logits: Any,
        keep: np.ndarray,
        hard: np.ndarray,
        there: np.ndarray,
    ) -> Any:
        inputs = {"track_2": neck["track_2"], "image_index": _images(rows), "mask_logits": mask_logits}
        told = {"keep": keep, "hard": hard, "there": there}
        return self._run(self.variant.tracking.memory_encoder, {**inputs, **told}, ("memory",))["memory"]

    def _write(self, rows: Sequence[Row], places: list[int], memory: Any, pointer: Any, given: bool) -> None:
        if not rows:
            return
        slots, frames = [row.slot for row in rows], [row.turn.frame for row in rows]
        self.bank.write(slots, frames, places, memory, pointer, given)

    def _answer(self, turn: Turn, step: Step) -> Tracks:
        """What is shown of a frame, in the caller's order and number."""
        variant, request = self.variant.tracking, turn.job.request
        seen = [bool(s.bits.any()) for s in step.shown]
        hidden = [s.object_id for s, there in zip(step.shown, seen, strict=True) if not there]
        shown = sorted((s for s, there in zip(step.shown, seen, strict=True) if there), key=lambda s: -s.score)
        shown = shown[: request.max_detections]
        bits = (
            np.stack([s.bits for s in shown])
            if shown
            else np.zeros((0, variant.mask_size, variant.mask_row_bytes), np.uint8)
        )
        slots = turn.session.max_objects
        return Tracks(
            boxes=squares.boxes(bits, variant.mask_size),
            scores=np.array([s.score for s in shown], np.float32),
            class_ids=np.array([s.class_id for s in shown], np.int32),
            presence=turn.session.presence,
            mask_bits=bits if request.mask_format != "none" else bits[:0],
            track_ids=np.array([s.object_id for s in shown], np.int64),
            track_scores=sigmoid(np.array([s.track_score for s in shown], np.float32)),
            track_states=np.array([s.state for s in shown], np.int32),
            hidden_ids=np.array(hidden, np.int64),
            frame_index=turn.frame,
            dropped_objects=step.dropped,
            session_bytes=slots * self.sessions.slot_bytes,
        )


_STEPPED = ("mask_logits", "mask_bits", "track_score", "pointer")
_TRACK = ("track_0", "track_1", "track_2", "track_x")


def _images(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row.turn.image for row in rows], np.int32)


def _undo(turns: Sequence[Turn | Exception]) -> None:
    for turn in turns:
        if isinstance(turn, Turn):
            turn.undo()


def _for_detector(job: VideoJob, due: bool) -> Job:
    """The job as the detector gets it: with masks, and without names where it does nothing for the frame."""
    return Job(replace(job.request, mask_format="bits"), job.tokens if due else [], job.frame_size)
