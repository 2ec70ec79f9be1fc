"""A plain tracking session in PyTorch on the small checkpoint: detections in every k-th frame begin tracks, and the
tracker carries them on. It measures the tracker; it serves nobody, and nothing bounds what it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.tiny.configuration import PATCH
from export.tiny.dataset import to_square
from export.tiny.predictor import Detections, TorchPredictor
from export.tiny.prompts import Prompt
from export.tiny.video.network import Features, TrackerNetwork, given_logits
from export.tiny.video.rollout import Memory, seed, tracked_entry

NEW_SCORE = 0.5
SAME = 0.1  # a detection that overlaps a track of its class by this much, as IoU, begins none
DOUBLE = 0.7  # of two tracks of a class that overlap by this much, the younger ends
MISSED = 3  # detections in a row without one on a track that nothing ever confirmed, and it ends


@dataclass(frozen=True, slots=True)
class Seen:
    """An object in a frame: its track's id, its class, and its mask bool [H, W]."""

    track: int
    name: str
    mask: np.ndarray


def detect(predictor: TorchPredictor, frame: np.ndarray, names: Sequence[str]) -> list[Detections]:
    """Detections of each class in a frame, those of NEW_SCORE and more, none inside of a better one of its class."""
    found = []
    for detections in predictor(frame, [Prompt(name) for name in names]):
        masks = detections.masks > 0
        keep: list[int] = []
        for n in np.flatnonzero(detections.scores >= NEW_SCORE):
            if masks[n].any() and all(overlap(masks[n], masks[m]) < SAME * 5 for m in keep):
                keep.append(int(n))
        parts = (detections.scores[keep], detections.boxes[keep], detections.masks[keep])
        found.append(Detections(*parts, detections.presence))
    return found


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of two masks bool [h, w], 0 where both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0


@dataclass(slots=True)
class Track:
    """One object that is followed, with a memory of its own."""

    number: int
    name: str
    memory: Memory
    mask: Tensor  # logits [4p, 4p] in the frame at hand
    hits: int = 1
    missed: int = 0


class Session:
    """One video: frames in order, each answered with what is seen in it. The tracker's `resolution` may be another than
    the detector's."""

    def __init__(
        self, network: TrackerNetwork, names: Sequence[str], predictor: TorchPredictor, resolution: int, every: int = 1
    ) -> None:
        self.network, self.names, self.every, self.resolution = network, tuple(names), every, resolution
        self.predictor = predictor
        self.tracks: list[Track] = []
        self.frames = self.started = 0

    @torch.inference_mode()
    def frame(self, frame: np.ndarray) -> list[Seen]:
        """What is seen in the next frame uint8 RGB [H, W, 3]."""
        self.network.at(self.resolution)
        pixels = torch.from_numpy(to_square(frame, self.resolution).copy())[None]
        seen = self.network.features(self.network.see(pixels))
        for track in self.tracks:
            tracked = self.network.step(seen, *track.memory.read(self.frames))
            entry, mask = tracked_entry(self.network, seen, tracked, self.frames)
            track.memory.write(entry, given_any=False)
            track.mask = mask[0]
        if self.frames % self.every == 0:
            self._begin(seen, detect(self.predictor, frame, self.names))
        self._end_doubles()
        self.frames += 1
        shown = []
        for track in self.tracks:
            full = F.interpolate(track.mask[None, None], size=frame.shape[:2], mode="bilinear")[0, 0] > 0
            if full.any():
                shown.append(Seen(track.number, track.name, full.numpy()))
        return shown

    def _begin(self, seen: Features, found: Sequence[Detections]) -> None:
        """Starts tracks of detections on which none lies, and ends those that no detection ever confirmed."""
        side = 4 * self.resolution // PATCH
        for name, detections in zip(self.names, found, strict=True):
            own = [track for track in self.tracks if track.name == name]
            hit = set()
            for logits in detections.masks:
                given = F.interpolate(torch.from_numpy(logits)[None, None], size=(side, side), mode="bilinear")[0] > 0
                shares = [overlap(given[0].numpy(), (track.mask > 0).numpy()) for track in own]
                if shares and max(shares) >= SAME:
                    hit.add(own[int(np.argmax(shares))].number)
                elif given.any():
                    entry, _ = seed(self.network, seen, given.float(), self.frames, sure=False)
                    memory = Memory()
                    memory.write(entry, given_any=True)
                    self.started += 1
                    self.tracks.append(Track(self.started, name, memory, given_logits(given[0].float())))
            for track in own:
                track.hits += track.number in hit
                visible = bool((track.mask > 0).any())
                track.missed = 0 if track.number in hit or not visible else track.missed + 1
        self.tracks = [t for t in self.tracks if not (t.missed >= MISSED and t.hits <= MISSED)]

    def _end_doubles(self) -> None:
        kept: list[Track] = []
        for track in self.tracks:
            mask = (track.mask > 0).numpy()
            if not any(o.name == track.name and overlap(mask, (o.mask > 0).numpy()) >= DOUBLE for o in kept):
                kept.append(track)
        self.tracks = kept
