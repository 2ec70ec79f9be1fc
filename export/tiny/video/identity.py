"""How well tracks keep their ids: HOTA (Luiten et al. 2020), IDF1 (Ristani et al. 2016) and the identity switches of
CLEAR MOT (Bernardin and Stiefelhagen 2008), from the overlap of what was found with what is there, frame by frame.

The same definitions as in the package trackeval, which brings OpenCV and an old NumPy with it; a test holds figures
that it gave.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

LEVELS = np.arange(0.05, 0.99, 0.05)  # overlaps at which HOTA asks whether two masks are one
MATCH = 0.5  # the one of IDF1 and of the switches
TIE = np.finfo(float).eps


@dataclass(frozen=True, slots=True)
class FrameOverlap:
    """One frame: ids of the objects that are there, ids of the tracks that were found, and their overlap [objects,
    tracks] in 0..1. No id twice."""

    objects: tuple[int, ...]
    tracks: tuple[int, ...]
    overlap: np.ndarray


@dataclass(slots=True)
class Identity:
    """Counts of one or several videos, which `+` adds up; figures come from their sums.

    By HOTA's level, [levels]: `right`, `extra` and `missed` objects, and `association`, the sum over the right ones of
    how well their two ids go together. `id_right` object frames agree under the best pairing of ids, out of `found`
    and `wanted` ones.
    """

    right: np.ndarray
    extra: np.ndarray
    missed: np.ndarray
    association: np.ndarray
    id_right: int
    found: int
    wanted: int
    switches: int

    def __add__(self, other: "Identity") -> "Identity":
        return Identity(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def hota(self) -> float:
        """Mean over the levels of the geometric mean of detection and association accuracy."""
        detection = self.right / np.maximum(1, self.right + self.extra + self.missed)
        return float(np.sqrt(detection * self.association / np.maximum(1, self.right)).mean())

    @property
    def idf1(self) -> float:
        """Share of the object frames and of the track frames that agree under the best pairing of ids."""
        return self.id_right / max(1.0, 0.5 * (self.found + self.wanted))


def identity(frames: Sequence[FrameOverlap]) -> Identity:
    """The counts of one video."""
    objects, tracks = (
        Counter(i for f in frames for i in part(f)) for part in (lambda f: f.objects, lambda f: f.tracks)
    )
    rows, columns = ({name: k for k, name in enumerate(part)} for part in (objects, tracks))
    numbered = [([rows[i] for i in f.objects], [columns[i] for i in f.tracks], f.overlap) for f in frames]
    lengths = np.array([*objects.values()], float)[:, None], np.array([*tracks.values()], float)[None]
    right, matches = _hota_matches(numbered, *lengths)
    wanted, found = int(lengths[0].sum()), int(lengths[1].sum())
    share = matches / np.maximum(1, lengths[0] + lengths[1] - matches)
    agreeing = np.zeros((len(rows), len(columns)))
    for there, said, overlap in numbered:
        agreeing[np.ix_(there, said)] += overlap >= MATCH
    best = linear_sum_assignment(agreeing, maximize=True)
    return Identity(
        right=right,
        extra=found - right,
        missed=wanted - right,
        association=(matches * share).sum((1, 2)),
        id_right=int(agreeing[best].sum()),
        found=found,
        wanted=wanted,
        switches=_switches(numbered),
    )


def _hota_matches(numbered: list, objects: np.ndarray, tracks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True positives [levels] and how often each pair was matched [levels, objects, tracks], where pairs that lie on
    one another through the whole video go first."""
    shape = objects.shape[0], tracks.shape[1]
    together = np.zeros(shape)
    for there, said, overlap in numbered:
        union = overlap.sum(0)[None] + overlap.sum(1)[:, None] - overlap
        together[np.ix_(there, said)] += np.divide(overlap, union, out=np.zeros_like(overlap), where=union > TIE)
    alignment = together / np.maximum(objects + tracks - together, TIE)
    right, matches = np.zeros(len(LEVELS)), np.zeros((len(LEVELS), *shape))
    for there, said, overlap in numbered:
        i, k = linear_sum_assignment(alignment[np.ix_(there, said)] * overlap, maximize=True)
        for level, least in enumerate(LEVELS):
            good = overlap[i, k] >= least - TIE
            right[level] += good.sum()
            matches[level, np.array(there, int)[i[good]], np.array(said, int)[k[good]]] += 1
    return right, matches


def _switches(numbered: list) -> int:
    """How often an object's track is another than the last that it had; a pair of the frame before is kept first."""
    last: dict[int, int] = {}
    before: dict[int, int] = {}
    switches = 0
    for there, said, overlap in numbered:
        kept = np.array([[before.get(i) == k for k in said] for i in there], float).reshape(overlap.shape)
        worth = np.where(overlap >= MATCH - TIE, 1000 * kept + overlap, 0)
        pairs = [
            (there[i], said[k])
            for i, k in zip(*linear_sum_assignment(worth, maximize=True), strict=True)
            if worth[i, k] > 0
        ]
        switches += sum(last.get(i, k) != k for i, k in pairs)
        before = dict(pairs)
        last |= before
    return switches
