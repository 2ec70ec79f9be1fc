"""A video through the tracker's sub-models, and through transformers' own tracker, on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import Sam3TrackerVideoInferenceSession

from ensemble.gate.compare import unpack
from ensemble.spec import Variant
from ensemble.tracker_interfaces import EMPTY_AGE, RECENT_MAPS, RECENT_POINTERS
from export.checkpoint.tracker import LoadedTracker
from export.gate.verify import Run, call

Given = Mapping[int, Mapping[int, np.ndarray]]
"""Frame -> object -> its mask there, bool [4p,4p]."""
Seen = list[dict[int, tuple[np.ndarray, float]]]
"""Of each frame: object -> its mask bool [4p,4p] and its score."""
FULL = np.uint8(255)


@dataclass
class Remembered:
    """What one object remembers: of each frame its map and its pointer, and which frames its mask was given in."""

    maps: dict[int, np.ndarray] = field(default_factory=dict)
    pointers: dict[int, np.ndarray] = field(default_factory=dict)
    given: list[int] = field(default_factory=list)

    def slots(self, now: int, maps: int, pointers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`memory`, `memory_age`, `pointers` and `pointer_age` of a step at the frame `now`."""
        last = [now - age for age in range(1, RECENT_POINTERS + 1) if now - age in self.pointers]
        own = [frame for frame in last if frame not in self.given]
        shown = [*self.given, *(frame for frame in own if now - frame <= RECENT_MAPS)]
        memory = np.zeros((maps, *self.maps[self.given[0]].shape), np.float32)
        memory_age = np.full(maps, EMPTY_AGE, np.int32)
        for slot, frame in enumerate(shown):
            memory[slot], memory_age[slot] = self.maps[frame], 0 if frame in self.given else now - frame
        told = np.zeros((pointers, *self.pointers[self.given[0]].shape), np.float32)
        pointer_age = np.full(pointers, EMPTY_AGE, np.float32)
        for slot, frame in enumerate([*self.given, *own]):
            told[slot], pointer_age[slot] = self.pointers[frame], now - frame
        return memory, memory_age, told, pointer_age


def ours(
    runs: Mapping[str, Run], variant: Variant, hidden: np.ndarray, given: Given, kept: torch.dtype = torch.float32
) -> Seen:
    """By the sub-models, all objects of a frame in one call; memory maps are `kept` in that dtype."""
    known: dict[int, Remembered] = {}
    whole = runs["memory_encoder"]
    runs = {**runs, "memory_encoder": lambda feed: {"memory": rounded(whole(feed)["memory"], kept)}}
    seen: Seen = []
    for now, tokens in enumerate(hidden):
        fresh, frame = given.get(now, {}), call(runs, variant, "tracker_neck", {"hidden": tokens[None]})
        tracked = [n for n in known if n not in fresh]
        answers = {}
        if tracked:
            slots = [known[n].slots(now, 10, 19) for n in tracked]
            names = ("memory", "memory_age", "pointers", "pointer_age")
            told = {name: np.stack(column) for name, column in zip(names, zip(*slots, strict=True), strict=True)}
            index = np.zeros(len(tracked), np.int32)
            step = call(runs, variant, "tracker_step", {**frame, **told, "image_index": index})
            flags = {"hard": index + bool(fresh), "there": (step["track_score"] > 0).astype(np.int32)}
            remember(runs, variant, {**frame, **flags, "mask_logits": step["mask_logits"]}, now, tracked, known, step)
            bits = unpack(step["mask_bits"], variant.mask_size)
            answers = {n: (bits[i], float(step["track_score"][i])) for i, n in enumerate(tracked)}
        if fresh:
            for n in fresh:
                known.setdefault(n, Remembered()).given.append(now)
            packed = np.packbits(np.stack(list(fresh.values())), axis=-1)
            index = np.zeros(len(fresh), np.int32)
            seed = call(runs, variant, "tracker_seed", {**frame, "image_index": index, "mask_bits": packed})
            flags = {"hard": index + 1, "there": index + 1, "mask_logits": seed["mask_logits"]}
            remember(runs, variant, {**frame, **flags}, now, list(fresh), known, seed)
            answers |= {n: (seed["mask_logits"][i] > 0, 10.0) for i, n in enumerate(fresh)}
        seen.append(answers)
    return seen


def rounded(maps: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(maps).to(dtype).float().numpy()


def remember(runs, variant, feed, now, objects, known, answer):
    """Adds a frame to what objects remember."""
    keep = np.full((len(objects), variant.mask_size, variant.mask_row_bytes), FULL)
    index = np.zeros(len(objects), np.int32)
    maps = call(runs, variant, "memory_encoder", {**feed, "keep": keep, "image_index": index})["memory"]
    for i, n in enumerate(objects):
        known[n].maps[now], known[n].pointers[now] = maps[i], answer["pointer"][i]


@torch.inference_mode()
def theirs(tracker: LoadedTracker, hidden: np.ndarray, given: Given) -> Seen:
    """By transformers, frame after frame, as a stream."""
    model, decoder = tracker.model, tracker.model.mask_decoder
    patches, size = model.backbone_feature_sizes[-1][0], model.image_size
    session = Sam3TrackerVideoInferenceSession(video_height=size, video_width=size, dtype=torch.float32)
    seen: Seen = []
    for now, tokens in enumerate(torch.from_numpy(hidden)):
        for n, mask in given.get(now, {}).items():
            session.add_mask_inputs(session.obj_id_to_idx(n), now, torch.from_numpy(mask).float()[None, None])
            session.obj_with_new_inputs.append(n)
        levels, places = tracker.neck(tokens.t().unflatten(1, (patches, patches))[None])
        maps = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2]]
        flat = {"vision_feats": [m.flatten(2).permute(2, 0, 1) for m in maps]}
        flat["vision_pos_embeds"] = [place.flatten(2).permute(2, 0, 1) for place in places[:3]]
        session.cache.cache_vision_features(now, flat)
        out = model(session, frame=torch.zeros(3, 1, 1), frame_idx=now)
        found = zip(out.object_ids, out.pred_masks[:, 0], out.object_score_logits[:, 0], strict=True)
        seen.append({n: ((mask > 0).numpy(), float(score)) for n, mask, score in found})
    return seen


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
