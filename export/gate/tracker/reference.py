"""What transformers' own tracker answers, by which the gate measures the tracker's sub-models.

One object after another, as transformers does it (its batches of several objects mix them up). Nothing of
`export/sub_models/` takes part, so that a mistake there cannot hide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3TrackerVideoInferenceSession

from export.checkpoint.tracker import LoadedTracker
from export.gate.tracker.history import History

Arrays = dict[str, np.ndarray]
NOW = 1000
"""Number of the frame that all steps are at."""
POOL = 6
"""Different maps and pointers that objects remember: enough that none can stand for another in its slot."""


@dataclass(frozen=True)
class TrackerTruth:
    """Of one history, by part: the `inputs` of its call and the `outputs` it should have, in fp32, and the `margins`
    [N] by which each object's best mask leads, of the step and the seed."""

    inputs: dict[str, Arrays]
    outputs: dict[str, Arrays]
    margins: dict[str, np.ndarray] = field(default_factory=dict)


@torch.no_grad()
def tracker_truths(
    tracker: LoadedTracker, hidden: np.ndarray, histories: Sequence[History], device: str = "cpu"
) -> list[TrackerTruth]:
    """Truths of the histories on frames whose tokens are `hidden` fp32 [B,p*p,width]; computed on `device`, in full
    fp32, and afterwards the tracker is on the CPU again. The neck's are in the first alone."""
    moved = tracker.model, tracker.neck
    try:
        for module in moved:
            module.to(device)  # type: ignore[arg-type]  # transformers' annotation knows no strings
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            reference = Reference(tracker, *neck_maps(tracker, torch.from_numpy(hidden).to(device)))
            found = [reference.truth(history) for history in histories]
            found[0].inputs["tracker_neck"] = {"hidden": hidden}
            found[0].outputs["tracker_neck"] = reference.features
            return found
    finally:
        for module in moved:
            module.to("cpu")  # type: ignore[arg-type]


def neck_maps(tracker: LoadedTracker, hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The tracker's feature maps of frames with these tokens [B,p*p,width], and their positions [n,1,C]."""
    side: int = tracker.model.backbone_feature_sizes[-1][0]
    levels, positions = tracker.neck(hidden.transpose(1, 2).unflatten(2, (side, side)))
    decoder = tracker.model.mask_decoder
    maps = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2]]
    return maps, [position[:1].flatten(2).permute(2, 0, 1) for position in positions[:3]]


class Reference:
    """The tracker on B frames with these maps, and a pool of memory maps [POOL,p*p,64] and pointers [POOL,C] that were
    made on them, unless nothing `remembers`. What one sub-model hands to the next is rounded to numbers that fp16
    holds."""

    def __init__(
        self, tracker: LoadedTracker, levels: list[Tensor], positions: list[Tensor], remembers: bool = True
    ) -> None:
        self.model, self.device = tracker.model, levels[0].device
        self.patches: int = self.model.backbone_feature_sizes[-1][0]
        self.levels, self.positions = levels, positions
        self.tokens, attended = self.attended()
        named = {f"track_{i}": _array(level) for i, level in enumerate(self.levels)}
        self.features: Arrays = {**named, "track_x": _array(attended)}
        self.attended_tokens = rounded(attended)
        if remembers:
            self.maps, self.pointers = map(rounded, self.pool())

    def attended(self) -> tuple[Tensor, Tensor]:
        """Tokens [B,p*p,C] before and behind the first self-attention of transformers' memory attention."""
        attention = self.model.memory_attention
        x = self.levels[2].flatten(2).transpose(1, 2) + 0.1 * self.positions[2].transpose(0, 1)
        layer = attention.layers[0]
        normed = layer.layer_norm1(x)[:, None]
        rotary = attention.rotary_emb(x, attention.position_ids.to(self.device))
        out, _ = layer.self_attn(normed, normed, normed, position_embeddings=rotary)
        return x, x + out[:, 0]

    def pool(self) -> tuple[Tensor, Tensor]:
        side, maps, pointers = 4 * self.patches, [], []
        for i in range(POOL):
            mask = torch.zeros(1, 1, side, side, device=self.device)
            mask[..., side // 8 * i : side // 8 * i + side // 3, side // 5 : side // 5 + side // (3 + i)] = 1
            image = i % len(self.levels[0])
            logits, pointer, *_ = self.seed(image, mask)
            pointers.append(pointer)
            maps.append(self.encode(image, logits[None, None], hard=i % 2 == 0, there=i != POOL - 1))
        return torch.stack(maps), torch.stack(pointers)

    def truth(self, history: History) -> TrackerTruth:
        """Step, then memory encoder on the step's masks and the given ones, and seed, all of the same objects."""
        images = len(self.levels[0])
        memory = self.maps[picks(history.image_index, images, history.memory_age.shape[1])]
        pointers = self.pointers[picks(history.image_index, images, history.pointer_age.shape[1])]
        steps, seeds, maps = [], [], []
        for n, image in enumerate(history.image_index.tolist()):
            steps.append(self.step(image, history, n, memory[n], pointers[n]))
            mask = torch.from_numpy(history.masks[n]).to(self.device).float()[None, None]
            seeds.append(self.seed(image, mask))
        logits = rounded(torch.stack([(seeds if hard else steps)[n][0] for n, hard in enumerate(history.hard)]))
        keep = torch.from_numpy(history.keep).to(self.device)
        kept = torch.where(keep, logits, logits.clamp(max=-10.0))
        for n, image in enumerate(history.image_index.tolist()):
            maps.append(self.encode(image, kept[n][None, None], bool(history.hard[n]), bool(history.there[n])))
        shared: Arrays = {**self.features, "track_x": _array(self.attended_tokens), "image_index": history.image_index}
        remembered = {"memory": _array(memory), "memory_age": history.memory_age}
        remembered |= {"pointers": _array(pointers), "pointer_age": history.pointer_age}
        packed = {name: np.packbits(getattr(history, name), axis=-1) for name in ("masks", "keep")}
        flags = {"hard": history.hard, "there": history.there}
        inputs = {
            "tracker_step": {**shared, **remembered},
            "memory_encoder": {**shared, "mask_logits": _array(logits), "keep": packed["keep"], **flags},
            "tracker_seed": {**shared, "mask_bits": packed["masks"]},
        }
        score, ious = _stacked(steps, 2), _stacked(steps, 3)
        outputs: dict[str, Arrays] = {
            "tracker_step": {"mask_logits": _stacked(steps, 0), "track_score": score, "track_iou": ious.max(1)},
            "memory_encoder": {"memory": _array(torch.stack(maps))},
            "tracker_seed": {"pointer": _stacked(seeds, 1), "mask_logits": _stacked(seeds, 0)},
        }
        outputs["tracker_step"]["pointer"] = _stacked(steps, 1)
        margins = {"tracker_step": lead(ious, score), "tracker_seed": lead(_stacked(seeds, 3), _stacked(seeds, 2))}
        return TrackerTruth(inputs, outputs, margins)

    # ---- one object
    def step(self, image: int, history: History, n: int, memory: Tensor, pointers: Tensor) -> tuple[Tensor, ...]:
        """Mask [4p,4p], pointer [C], score [] and predicted IoUs [3] of object `n`."""
        session = Sam3TrackerVideoInferenceSession(
            video_height=self.model.image_size,
            video_width=self.model.image_size,
            dtype=torch.float32,
            inference_device=self.device,
            inference_state_device=self.device,
        )
        row = session.obj_id_to_idx(0)
        outputs = session.output_dict_per_obj[row]
        space = self.model.memory_encoder.position_encoding(
            (1, self.model.mem_dim, self.patches, self.patches), self.device, torch.float32
        )
        maps = {
            int(frame): {"maskmem_features": memory[i][:, None], "maskmem_pos_enc": space.flatten(2).permute(2, 0, 1)}
            for i, frame in enumerate(history.memory_frame[n])
            if frame >= 0
        }
        conditioning = history.memory_frame[n][history.memory_age[n] == 0].tolist()
        for i, age in enumerate(history.pointer_age[n].astype(int).tolist()):
            if age >= 0:
                kind = "cond_frame_outputs" if age in conditioning else "non_cond_frame_outputs"
                outputs[kind][NOW - age] = {"object_pointer": pointers[i][None], **maps.get(age, {})}
        features = [level[image : image + 1].flatten(2).permute(2, 0, 1) for level in self.levels]
        session.cache.cache_vision_features(NOW, {"vision_feats": features, "vision_pos_embeds": self.positions})
        with heard(self.model.mask_decoder) as said, self.first_attention(image):
            found = self.model._run_single_frame_inference(
                session, NOW, row, 1, False, None, None, reverse=False, streaming=True
            )
        _, ious, _, _ = said[0]
        mask, pointer, score = (found[k] for k in ("pred_masks", "object_pointer", "object_score_logits"))
        return mask[0, 0], pointer.flatten(), score.flatten()[0], ious.flatten()

    @contextmanager
    def first_attention(self, image: int) -> Iterator[None]:
        """While the block runs, the first self-attention of this frame gives what makes its tokens the rounded ones."""
        added = (self.attended_tokens - self.tokens)[image : image + 1, None]
        attention = self.model.memory_attention.layers[0].self_attn
        handle = attention.register_forward_hook(lambda _module, _inputs, output: (added, *output[1:]))
        try:
            yield
        finally:
            handle.remove()

    def seed(self, image: int, mask: Tensor) -> tuple[Tensor, ...]:
        """Of a given mask [1,1,4p,4p] its logits [4p,4p], and the pointer [C], score [] and IoUs [3] of the decoder."""
        fine, middle, coarse = (level[image : image + 1] for level in self.levels)
        with heard(self.model.mask_decoder) as said:
            found = self.model._use_mask_as_output(coarse, [fine, middle], mask)
        _, ious, _, score = said[0]
        # What the memory is made of, high_res_masks, is these logits enlarged to the frame's size; see `encode`.
        return (20 * mask - 10)[0, 0], found.object_pointer.flatten(), score.flatten()[0], ious.flatten()

    def encode(self, image: int, logits: Tensor, hard: bool, there: bool) -> Tensor:
        """The memory map [p*p,64] of a mask [1,1,4p,4p], by way of the frame's size as the tracker has it."""
        coarse = self.levels[2][image : image + 1].flatten(2).permute(2, 0, 1)
        enlarged = F.interpolate(logits, (self.model.image_size,) * 2, mode="bilinear", align_corners=False)
        score = torch.tensor([[1.0 if there else -1.0]], device=self.device)
        with heard(self.model.memory_encoder) as said:
            self.model._encode_new_memory(coarse, enlarged, score, hard)
        # What it returns is rounded to bfloat16. The encoder's answer is what was rounded: the code for absent objects
        # has been added to it in place.
        return said[0][0][0].flatten(1).t()


def picks(image_index: np.ndarray, images: int, slots: int) -> np.ndarray:
    """Which of the pool each object remembers in each slot, int64 [N,slots]: mostly one that was made on its own frame,
    which a tracker that has learnt will find there, and between them others."""
    found = np.empty((len(image_index), slots), np.int64)
    for n, image in enumerate(image_index):
        own = range(int(image), POOL, images)
        found[n] = own[n % len(own)]
        found[n, 2::3] = (n + np.arange(2, slots, 3)) % POOL
    return found


@contextmanager
def heard(module: nn.Module) -> Iterator[list[tuple[Tensor, ...]]]:
    """The outputs of a module while the block runs, call by call."""
    said: list[tuple[Tensor, ...]] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: said.append(output))
    try:
        yield said
    finally:
        handle.remove()


def lead(ious: np.ndarray, score: np.ndarray) -> np.ndarray:
    """How far each object's answer is from another one [N]: its best mask from the next best by predicted IoU, and its
    score from zero."""
    first, second = np.sort(ious, 1)[:, :-3:-1].T
    return np.minimum(first - second, np.abs(score))


def rounded(values: Tensor) -> Tensor:
    """The nearest numbers that fp16 holds."""
    return values.half().float()


def _stacked(rows: Sequence[tuple[Tensor, ...]], i: int) -> np.ndarray:
    return _array(torch.stack([row[i] for row in rows]))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True)
