"""Who is who from frame to frame, in one session: what the tracker has carried on meets what the detector has found.

Thresholds that SAM 3 publishes have its values (`Sam3VideoConfig` in transformers). Where its streaming mode does
nothing, since it cannot look ahead, this does: objects that nothing confirms end, so do those that are lost, and their
number is bounded. No pixel is decoded and no model is called: everything is decided on packed masks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ensemble.video import overlap
from ensemble.video.variant import CONFIRMED, NEW, TRACKED


@dataclass(frozen=True, slots=True)
class Rules:
    """When an object begins, is confirmed, and ends. Shares are IoU of masks; "looks" are frames with detections."""

    max_objects: int = 16
    new_score: float = 0.7  # of a detection that begins an object
    nms: float = 0.1  # a detection that a better one of its class overlaps more is none
    same: float = 0.1  # a detection that overlaps an object of its class so much begins none, and corrects its mask
    confirming: float = 0.5  # a detection that overlaps an object so much confirms it
    proof: int = 3  # looks that confirm an object before it counts as proven
    hesitation: int = 3  # looks in a row that see an object without confirming it, and it is not shown until one does
    unproven: int = 3  # looks in a row that see an object that is not proven without confirming it, and it ends
    doubted: int = 30  # the same for a proven one
    lost: int = 150  # frames in a row in which it cannot be seen, and it ends
    double: float = 0.7  # of two objects of a class that overlap so much, one is suppressed
    doubles: int = 8  # frames in a row in which an object was suppressed, and it ends
    shrunk: float = 0.3  # of a mask that loses more than the rest of it to others, nothing is remembered
    refresh: int = 16  # frames between conditioning frames of an object
    refresh_score: float = 0.8  # of a detection that makes one
    refresh_share: float = 0.8
    reach: float = 2.0  # a new detection within so many sizes of where a hidden object was is that object
    reach_frames: int = 30  # if it has been hidden for at most so long


@dataclass(frozen=True, slots=True)
class Propagated:
    """What the tracker says of a session's objects, in their order: masks uint8 [N,S,ceil(S/8)], and the logit that the
    object is in the frame [N]."""

    bits: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Found:
    """Detections of a frame: class_ids int32 [D], scores [D], masks uint8 [D,S,ceil(S/8)]."""

    class_ids: np.ndarray
    scores: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True, slots=True)
class Seed:
    """An object whose mask is given in this frame."""

    object_id: int
    bits: np.ndarray


@dataclass(frozen=True, slots=True)
class Shown:
    """An object in the answer; `bits` are empty where it cannot be seen."""

    object_id: int
    class_id: int
    score: float
    track_score: float
    state: int
    bits: np.ndarray


@dataclass(slots=True)
class Object:
    """One object that is followed: `score` is that of the last detection on it, `seen` the last mask that was not
    empty; `hits` are looks that confirmed it, `misses` the last looks in a row that did not although it was seen;
    `hidden` and `suppressed` are frames in a row; `given` is its last conditioning frame, `occluded` the last frame
    without it."""

    object_id: int
    class_id: int
    score: float
    born: int
    given: int
    seen: np.ndarray
    hits: int = 1
    misses: int = 0
    hidden: int = 0
    suppressed: int = 0
    occluded: int = -1


@dataclass(slots=True)
class Step:
    """What follows from a frame. `keep` uint8 [N,S,ceil(S/8)] and `there` int32 [N] are what the memory encoder is told
    of the objects that were propagated, in their order; `dropped` counts detections that had no room."""

    keep: np.ndarray
    there: np.ndarray
    seeds: list[Seed] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    dropped: int = 0
    shown: list[Shown] = field(default_factory=list)


class Follower:
    """The objects of one session, oldest first."""

    def __init__(self, rules: Rules | None = None, first_id: int = 1) -> None:
        self.rules = rules or Rules()
        self.objects: list[Object] = []
        self._next = first_id

    def copied(self) -> Follower:
        """The same objects, which the original's next frame leaves as they are."""
        other = copy.copy(self)
        other.objects = [copy.copy(known) for known in self.objects]
        return other

    def seed(self, frame: int, ids: np.ndarray, class_ids: np.ndarray, bits: np.ndarray) -> None:
        """Begins with objects of an earlier session, which keep their ids; new ones get greater ids."""
        for object_id, class_id, mask in zip(ids.tolist(), class_ids.tolist(), bits, strict=True):
            self.objects.append(Object(object_id, class_id, 1.0, frame, frame, mask, hits=self.rules.proof))
            self._next = max(self._next, object_id + 1)

    def close_classes(self, renamed: Mapping[int, int]) -> None:
        """Classes have other numbers now, old to new; objects of classes that are not among them end."""
        self.objects = [known for known in self.objects if known.class_id in renamed]
        for known in self.objects:
            known.class_id = renamed[known.class_id]

    def frame(self, frame: int, propagated: Propagated, found: Found | None) -> Step:
        """One frame further. `propagated` has a row for each of `objects`; `found` is None where nobody looked."""
        rules, objects = self.rules, self.objects
        bits = propagated.bits.copy()
        bits[propagated.scores <= 0] = 0
        class_ids = np.array([known.class_id for known in objects], np.int64)
        self._suppress(bits, class_ids)
        keep = overlap.apart(bits, propagated.scores, class_ids)
        before, after = overlap.areas(bits), overlap.areas(keep)
        keep[after < rules.shrunk * before] = 0
        step = Step(keep, (before > 0).astype(np.int32))
        for known, mask, area in zip(objects, bits, before, strict=True):
            known.hidden = 0 if area else known.hidden + 1
            if area:
                known.seen = mask
            else:
                known.occluded = frame
        confirmed: dict[int, np.ndarray] = {}
        newcomers: list[Object] = []
        if found is not None:
            newcomers = self._meet(frame, bits, before > 0, found, step, confirmed)
        over = {known.object_id for known in objects if self._is_over(known)}
        step.seeds = [seed for seed in step.seeds if seed.object_id not in over]
        step.ended = sorted(over)
        for known, mask, area, score in zip(objects, bits, before, propagated.scores, strict=True):
            if known.object_id not in over:
                shown = mask if area else confirmed.get(known.object_id, mask)
                if known.misses >= rules.hesitation:
                    shown = np.zeros_like(mask)
                state = CONFIRMED if known.object_id in confirmed else TRACKED
                step.shown.append(Shown(known.object_id, known.class_id, known.score, float(score), state, shown))
        self.objects = [known for known in objects if known.object_id not in over]
        self._begin(newcomers, found, step)
        return step

    def _suppress(self, bits: np.ndarray, class_ids: np.ndarray) -> None:
        """Of two objects of a class on one thing, empties the mask of the one that was hidden more recently, of others
        the younger."""
        objects = self.objects
        others_of_class = (class_ids[:, None] == class_ids[None]) & ~np.eye(len(bits), dtype=bool)
        shares = overlap.iou(bits, bits, others_of_class)
        doubles = set()
        for n, k in np.argwhere(shares >= self.rules.double).tolist():
            mine, others = ((o.occluded, o.born, o.object_id) for o in (objects[n], objects[k]))
            if others < mine:
                doubles.add(n)
        for n, known in enumerate(objects):
            known.suppressed = known.suppressed + 1 if n in doubles else 0
            if known.suppressed:
                bits[n] = 0

    def _meet(
        self,
        frame: int,
        bits: np.ndarray,
        visible: np.ndarray,
        found: Found,
        step: Step,
        confirmed: dict[int, np.ndarray],
    ) -> list[Object]:
        """Detections confirm objects, correct the masks (in `bits`) of those that nothing confirms, show hidden ones
        again, or are new ones, which it returns, best first."""
        rules, objects = self.rules, self.objects
        chosen = overlap.without_doubles(found.bits, found.scores, found.class_ids, rules.nms)
        chosen = chosen[overlap.areas(found.bits[chosen]) > 0]
        same_class = found.class_ids[chosen][:, None] == np.array([o.class_id for o in objects], np.int64)[None]
        shares = overlap.iou(found.bits[chosen], bits, same_class)
        for n, known in enumerate(objects):
            best = int(shares[:, n].argmax()) if len(chosen) else -1
            if best >= 0 and shares[best, n] >= rules.confirming:
                known.hits, known.misses = known.hits + 1, 0
                known.score = float(found.scores[chosen[best]])
                confirmed[known.object_id] = found.bits[chosen[best]]
                due = frame - known.given >= rules.refresh and known.score >= rules.refresh_score
                if due and shares[best, n] >= rules.refresh_share:
                    self._give(known, found.bits[chosen[best]], frame, step)
            elif visible[n]:
                known.misses += 1
        newcomers: list[Object] = []
        for row, n in enumerate(chosen):
            if found.scores[n] < rules.new_score:
                continue
            mask, score, class_id = found.bits[n], float(found.scores[n]), int(found.class_ids[n])
            nearest = int(shares[row].argmax()) if len(objects) else -1
            if nearest >= 0 and shares[row, nearest] >= rules.same:
                corrected = objects[nearest]
                if corrected.object_id in confirmed:
                    continue
                bits[nearest] = mask  # the tracker's has drifted off the object
            elif (hidden := self._hidden_at(class_id, mask, confirmed)) is not None:
                corrected = hidden
            else:
                newcomers.append(Object(int(n), class_id, score, frame, frame, mask))
                continue
            corrected.hits, corrected.misses, corrected.hidden = corrected.hits + 1, 0, 0
            corrected.score, corrected.seen = score, mask
            confirmed[corrected.object_id] = mask
            self._give(corrected, mask, frame, step)
        return newcomers

    def _hidden_at(self, class_id: int, mask: np.ndarray, confirmed: Mapping[int, np.ndarray]) -> Object | None:
        """The object of that class, hidden for a while at most, that was seen nearest to that mask and about as
        large."""
        centre, size = overlap.centre_and_size(mask)
        near: list[tuple[float, Object]] = []
        for known in self.objects:
            if not 0 < known.hidden <= self.rules.reach_frames or known.suppressed:
                continue
            if known.class_id != class_id or known.object_id in confirmed:
                continue
            place, side = overlap.centre_and_size(known.seen)
            distance = float(np.hypot(*(centre - place))) / max(size, side)
            if distance <= self.rules.reach and 0.5 <= size / side <= 2:
                near.append((distance, known))
        return min(near, key=lambda pair: pair[0])[1] if near else None

    @staticmethod
    def _give(known: Object, mask: np.ndarray, frame: int, step: Step) -> None:
        known.given = frame
        step.seeds.append(Seed(known.object_id, mask))

    def _is_over(self, known: Object) -> bool:
        rules = self.rules
        patience = rules.doubted if known.hits >= rules.proof else rules.unproven
        return known.misses >= patience or known.hidden >= rules.lost or known.suppressed >= rules.doubles

    def _begin(self, newcomers: list[Object], found: Found | None, step: Step) -> None:
        """The best of the newcomers, as many as there is room for."""
        room = self.rules.max_objects - len(self.objects)
        step.dropped = max(0, len(newcomers) - room)
        for known in newcomers[:room]:
            assert found is not None, "newcomers are detections"
            mask = found.bits[known.object_id]
            known.object_id, self._next = self._next, self._next + 1
            self.objects.append(known)
            step.seeds.append(Seed(known.object_id, mask))
            step.shown.append(Shown(known.object_id, known.class_id, known.score, 10.0, NEW, mask))
