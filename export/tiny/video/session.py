"""A tracking session in PyTorch on the small checkpoint, under the server's own rules (`ensemble/video/follow.py`):
detections in every k-th frame begin and confirm objects, and the tracker carries them on. It measures; it serves
nobody."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ensemble.video.follow import Follower, Found, Propagated, Rules, Step
from export.sub_models.tracker.memory_encoder import TAKEN
from export.tiny.configuration import PATCH
from export.tiny.dataset import to_square
from export.tiny.predictor import Detections, TorchPredictor
from export.tiny.prompts import Prompt
from export.tiny.video.network import Features, TrackerNetwork, given_logits
from export.tiny.video.rollout import Entry, Memory, seed

LEAST_SCORE = 0.5  # of a detection that either tracker is told of
SAME_DETECTION = 0.5  # a detection that overlaps a better one of its class by this much, as IoU, is none


@dataclass(frozen=True, slots=True)
class Seen:
    """An object in a frame: its track's id, its class, and its mask bool [H, W]."""

    track: int
    name: str
    mask: np.ndarray


def detect(predictor: TorchPredictor, frame: np.ndarray, names: Sequence[str]) -> list[Detections]:
    """Detections of each class in a frame, those of LEAST_SCORE and more, none inside of a better one of its class."""
    found = []
    for detections in predictor(frame, [Prompt(name) for name in names]):
        masks = detections.masks > 0
        keep: list[int] = []
        for n in np.flatnonzero(detections.scores >= LEAST_SCORE):
            if masks[n].any() and all(overlap(masks[n], masks[m]) < SAME_DETECTION for m in keep):
                keep.append(int(n))
        parts = (detections.scores[keep], detections.boxes[keep], detections.masks[keep])
        found.append(Detections(*parts, detections.presence))
    return found


@torch.inference_mode()
def features(network: TrackerNetwork, frame: np.ndarray, resolution: int) -> Features:
    """What the tracker's neck makes of a frame uint8 RGB [H, W, 3]."""
    network.at(resolution)
    return network.features(network.see(torch.from_numpy(to_square(frame, resolution).copy())[None]))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of two masks bool [h, w], 0 where both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0


@dataclass(frozen=True, slots=True)
class Carried:
    """One object in the frame at hand as the tracker has it: mask logits [1, 4p, 4p], pointer [1, c], score logit."""

    mask: Tensor
    pointer: Tensor
    score: float


class Session:
    """One video: frames in order, each answered with what is seen in it. The tracker's `resolution` may be another than
    the detector's. What neither depends on the frames before nor on `every` is the caller's to make, once a frame."""

    def __init__(
        self,
        network: TrackerNetwork,
        names: Sequence[str],
        resolution: int,
        every: int = 1,
        rules: Rules | None = None,
    ) -> None:
        self.network, self.names, self.every, self.resolution = network, tuple(names), every, resolution
        self.follower = Follower(rules)
        self.memories: dict[int, Memory] = {}
        self.frames = 0

    @torch.inference_mode()
    def frame(self, seen: Features, detections: Sequence[Detections], size: tuple[int, int]) -> list[Seen]:
        """What is seen in the next frame of that size (height, width), from the neck's features of it (`features`) and
        what the detector finds in it (`detect`), which is used where the detector is due."""
        self.network.at(self.resolution)
        carried = {known.object_id: self._carried(seen, known.object_id) for known in self.follower.objects}
        due = self.frames % self.every == 0 or not carried
        found = self._found(detections) if due else None
        step = self.follower.frame(self.frames, self._propagated(list(carried.values())), found)
        self._remember(seen, carried, step)
        self.frames += 1
        shown = []
        for known in step.shown:
            bits = torch.from_numpy(np.unpackbits(known.bits, axis=-1, count=self._side))
            mask = given_logits(bits.float())
            if known.object_id in carried and torch.equal(carried[known.object_id].mask[0] > 0, bits > 0):
                mask = carried[known.object_id].mask[0]  # the logits have a finer edge than the decisions
            full = F.interpolate(mask[None, None], size=size, mode="bilinear")[0, 0] > 0
            if full.any():
                shown.append(Seen(known.object_id, self.names[known.class_id], full.numpy()))
        return shown

    @property
    def _side(self) -> int:
        return 4 * self.resolution // PATCH

    def _carried(self, seen: Features, object_id: int) -> Carried:
        tracked = self.network.step(seen, *self.memories[object_id].read(self.frames))
        mask, pointer = tracked.best()
        return Carried(mask, self.network.pointer(pointer, tracked.score > 0), float(tracked.score))

    def _propagated(self, carried: Sequence[Carried]) -> Propagated:
        logits = torch.cat([own.mask for own in carried]) if carried else torch.zeros(0, self._side, self._side)
        return Propagated(
            np.packbits(logits.numpy() > 0, axis=-1), np.array([own.score for own in carried], np.float32)
        )

    def _remember(self, seen: Features, carried: dict[int, Carried], step: Step) -> None:
        """Each object's frame goes into its memory: as the detector gave it, or what the others leave of what the
        tracker has made."""
        given = {one.object_id: one.bits for one in step.seeds}
        for object_id in step.ended:
            self.memories.pop(object_id, None)
        for keep, there, (object_id, own) in zip(step.keep, step.there, carried.items(), strict=True):
            if object_id in self.memories and object_id not in given:
                kept = torch.from_numpy(np.unpackbits(keep, axis=-1, count=self._side))[None] > 0
                mask = torch.where(kept, own.mask, own.mask.clamp(max=TAKEN))
                none, present = torch.zeros(1, dtype=torch.bool), torch.tensor([bool(there)])
                memory = self.network.remember(seen, mask, none, present)
                self.memories[object_id].write(Entry(self.frames, memory, own.pointer, none), given_any=False)
        for object_id, bits in given.items():
            mask = torch.from_numpy(np.unpackbits(bits, axis=-1, count=self._side))[None].float()
            entry, _ = seed(self.network, seen, mask, self.frames, sure=True)
            self.memories.setdefault(object_id, Memory()).write(entry, given_any=True)

    def _found(self, detections: Sequence[Detections]) -> Found:
        """Detections of all classes at the tracker's size, packed."""
        side = 4 * self.resolution // PATCH
        sized = [
            F.interpolate(torch.from_numpy(d.masks)[:, None], size=(side, side), mode="bilinear")[:, 0] > 0
            for d in detections
            if len(d.masks)
        ]
        masks = torch.cat(sized).numpy() if sized else np.zeros((0, side, side), bool)
        classes = np.repeat(np.arange(len(detections), dtype=np.int32), [len(d.scores) for d in detections])
        return Found(classes, np.concatenate([d.scores for d in detections]), np.packbits(masks, axis=-1))
