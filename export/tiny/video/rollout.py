"""From frame to frame: what is remembered of N objects that began together, and the way through a clip with it."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ensemble.tracker_interfaces import CONDITIONING_MAPS, RECENT_MAPS, RECENT_POINTERS
from export.sub_models.tracker.mask_decoder import NO_OBJECT
from export.tiny.video.network import Features, Tracked, TrackerNetwork, given_logits


@dataclass(slots=True)
class Entry:
    """One frame's part of the memory: memory [N, p², 64], pointer [N, c], given bool [N] (the mask was given; its
    memory never grows old)."""

    frame: int
    memory: Tensor
    pointer: Tensor
    given: Tensor


@dataclass(slots=True)
class Memory:
    """What a group of objects remembers: maps of up to `conditioning` given masks and of the last `recent` frames,
    pointers of the given masks and of the last `pointers` frames. The first entry's masks are all given."""

    recent: int = RECENT_MAPS
    conditioning: int = CONDITIONING_MAPS
    pointers: int = RECENT_POINTERS
    entries: list[Entry] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)  # frames with given masks

    def write(self, entry: Entry, given_any: bool) -> None:
        """Adds a frame, and drops what cannot be read any more; `given_any` says whether some object's mask was
        given."""
        self.entries.append(entry)
        self.kept = [*self.kept, entry.frame][-self.conditioning :] if given_any else self.kept
        oldest = entry.frame - max(self.pointers, self.recent)
        self.entries = [e for e in self.entries if e.frame > oldest or e.frame in self.kept]

    def read(self, frame: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """memory [N, M, p², 64], memory_age int64 [N, M], pointers [N, P, c], pointer_age float [N, P] for `frame`."""
        maps = [e for e in self.entries if e.frame in self.kept or frame - e.frame <= self.recent]
        points = [e for e in self.entries if e.frame in self.kept or frame - e.frame <= self.pointers]
        ages = [torch.where(e.given, 0, min(frame - e.frame, RECENT_MAPS)) for e in maps]
        since = [e.pointer.new_full((len(e.pointer),), frame - e.frame, dtype=torch.float32) for e in points]
        return (
            torch.stack([e.memory for e in maps], 1),
            torch.stack(ages, 1),
            torch.stack([e.pointer for e in points], 1),
            torch.stack(since, 1),
        )


def seed(network: TrackerNetwork, seen: Features, masks: Tensor, frame: int, sure: bool) -> tuple[Entry, Tensor]:
    """The entry of given masks [N, 4p, 4p] in 0..1, and the decoder's scores [N], which should say that the objects are
    there. Where one does not, transformers keeps the pointer of absent objects; if `sure`, that of the mask is kept."""
    given = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
    logits, pointer, score = network.seed(seen, masks)
    pointer = pointer if sure else network.pointer(pointer, score > 0)
    return Entry(frame, network.remember(seen, logits, given, given), pointer, given), score


def tracked_entry(
    network: TrackerNetwork, seen: Features, tracked: Tracked, frame: int, there: Tensor | None = None
) -> tuple[Entry, Tensor]:
    """The entry of a step, and its masks [N, 4p, 4p], NO_OBJECT where the object is not there; `there` bool [N] takes
    the place of the score."""
    there = tracked.score > 0 if there is None else there
    mask, pointer = tracked.best()
    mask = torch.where(there[:, None, None], mask, NO_OBJECT)
    memory = network.remember(seen, mask, torch.zeros_like(there), there)
    return Entry(frame, memory, network.pointer(pointer, there), torch.zeros_like(there)), mask


def mixed(mask: Tensor, one: Entry, other: Entry) -> Entry:
    """`one` for the objects where `mask` [N] is set, `other` for the rest."""
    return Entry(
        one.frame,
        torch.where(mask[:, None, None], one.memory.to(other.memory.dtype), other.memory),
        torch.where(mask[:, None], one.pointer.to(other.pointer.dtype), other.pointer),
        torch.where(mask, one.given, other.given),
    )


@torch.inference_mode()
def propagate(
    network: TrackerNetwork, hidden: Tensor, first: Tensor, memory: Memory | None = None
) -> tuple[Tensor, Tensor]:
    """Objects through a video: hidden [T, p², d] of the trunk, first [N, 4p, 4p] masks in 0..1 on the first frame.
    Returns masks [T, N, 4p, 4p] logits and scores [T, N]; on the first frame those that were given."""
    memory = memory or Memory()
    masks, scores = [], []
    for t in range(len(hidden)):
        seen = network.features(hidden[t : t + 1]).of(torch.zeros(len(first), dtype=torch.long, device=hidden.device))
        if t == 0:
            memory.write(seed(network, seen, first, t, sure=False)[0], given_any=True)
            masks.append(given_logits(first))
            scores.append(torch.full((len(first),), 10.0, device=hidden.device))
            continue
        tracked = network.step(seen, *memory.read(t))
        entry, mask = tracked_entry(network, seen, tracked, t)
        memory.write(entry, given_any=False)
        masks.append(mask.float())
        scores.append(tracked.score.float())
    return torch.stack(masks), torch.stack(scores)


def reduced(masks: Tensor) -> Tensor:
    """Masks bool [..., 8p, 8p] to float [..., 4p, 4p], set where half of the pixels are."""
    return (F.avg_pool2d(masks.float().flatten(0, -3)[:, None], 2)[:, 0] >= 0.5).float().unflatten(0, masks.shape[:-2])
