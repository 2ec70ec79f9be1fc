"""Detections by transformers' own `Sam3Model.forward`: the reference that engines are compared with, behind the same
interface as theirs (`Predict` in `evaluate.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Sam3Config, Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from export.sub_models import pooled_keys
from export.tiny.dataset import NO_BOX, cxcywh, normalised, to_square
from export.tiny.prompts import Prompt
from export.tiny.tokenizer import encode

FLOOR, TOP = 0.01, 12
"""Lowest score and most detections of a prompt: average precision needs the whole curve, and no scene has that many
objects."""


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found for one prompt. scores float [n], highest first; boxes float [n, 4] xyxy as fractions of the
    frame; masks [n, h, w] over the whole frame, either logits (float, 0 is the edge) or decisions (bool), of any size;
    presence: probability that the prompt is in the frame at all."""

    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    presence: float


def load_model(folder: Path | str, resolution: int, device: str = "cpu") -> tuple[Sam3Model, PreTrainedTokenizerBase]:
    """A SAM3 folder (this project's or the original's) at a resolution, in fp32 and evaluation mode, and its
    tokenizer."""
    config = Sam3Config.from_pretrained(folder)
    config.image_size = resolution  # before loading: the rotary tables are made from it
    model = Sam3Model.from_pretrained(folder, config=config, dtype=torch.float32).eval().to(device)
    pooled_keys.apply(model)
    return model, AutoTokenizer.from_pretrained(folder)


class TorchPredictor:
    """Callable (frame, prompts) -> one `Detections` a prompt, at most `top` each, none below `floor`."""

    def __init__(
        self,
        model: Sam3Model,
        tokenizer: PreTrainedTokenizerBase,
        resolution: int,
        floor: float = FLOOR,
        top: int = TOP,
    ) -> None:
        self.model, self.tokenizer, self.resolution = model, tokenizer, resolution
        self.floor, self.top = floor, top

    @torch.inference_mode()
    def __call__(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Detections]:
        device = self.model.device
        pixels = torch.from_numpy(to_square(frame, self.resolution).copy())[None].to(device)
        vision = self.see(pixels)
        found: dict[int, Detections] = {}
        # Prompts with boxes carry extra tokens, so the two kinds go through the model in two calls.
        for boxed in (False, True):
            chosen = [k for k, prompt in enumerate(prompts) if bool(prompt.boxes) == boxed]
            for k, detections in zip(chosen, self._run(vision, [prompts[k] for k in chosen]), strict=True):
                found[k] = detections
        return [found[k] for k in range(len(prompts))]

    def see(self, pixels: torch.Tensor) -> Sam3VisionEncoderOutput:
        """What the vision encoder makes of a frame uint8 [1,R,R,3]."""
        return self.model.get_vision_features(pixel_values=normalised(pixels))

    def _run(self, vision: Sam3VisionEncoderOutput, prompts: list[Prompt]) -> list[Detections]:
        if not prompts:
            return []
        device, count = self.model.device, len(prompts)
        ids, mask = (torch.tensor(t, device=device) for t in encode(self.tokenizer, [p.text for p in prompts]))
        inputs = dict(input_ids=ids, attention_mask=mask)
        longest = max(len(p.boxes) for p in prompts)
        if longest:
            boxes, labels = torch.zeros(count, longest, 4), torch.full((count, longest), NO_BOX)
            for n, prompt in enumerate(prompts):
                boxes[n, : len(prompt.boxes)] = torch.tensor([cxcywh(box) for box in prompt.boxes])
                labels[n, : len(prompt.boxes)] = torch.tensor(prompt.labels)
            inputs |= dict(input_boxes=boxes.to(device), input_boxes_labels=labels.to(device))
        expand = lambda levels: tuple(level.expand(count, -1, -1, -1) for level in levels)  # noqa: E731
        shared = Sam3VisionEncoderOutput(
            fpn_hidden_states=expand(vision.fpn_hidden_states),
            fpn_position_encoding=expand(vision.fpn_position_encoding),
        )
        out = self.model(vision_embeds=shared, **inputs)
        presence = out.presence_logits.sigmoid().reshape(count)
        scores, order = (out.pred_logits.sigmoid() * presence[:, None]).sort(1, descending=True)
        results = []
        for n in range(count):
            keep = order[n, : self.top][scores[n, : self.top] >= self.floor]
            parts = (scores[n, : len(keep)], out.pred_boxes[n, keep], out.pred_masks[n, keep])
            score, boxes, masks = (part.float().cpu().numpy() for part in parts)
            results.append(Detections(score, boxes, masks, float(presence[n])))
        return results
