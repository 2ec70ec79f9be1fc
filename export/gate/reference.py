"""The reference that every artifact is measured by: what `Sam3Model` itself answers on a few frames.

Every output of every sub-model is taken from transformers' own forward pass, run once for each (image, class) pair.
Nothing of `export/sub_models/` takes part, so that a mistake there cannot hide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

Arrays = Mapping[str, np.ndarray]

REFERENCE_BYTES = 16 << 30
"""Free GPU memory that the reference needs to run there: for weights in fp32 (3200 MB) and activations of a few frames
at 1008."""


@dataclass(frozen=True)
class Sample:
    """What one call of the chain is given: B frames, P prompts and N pairs of them, each with up to K exemplar
    boxes."""

    pixel_values: np.ndarray  # uint8 [B,3,R,R]
    input_ids: np.ndarray  # int32 [P,L]
    text_mask: np.ndarray  # int32 [P,L]
    image_index: np.ndarray  # int32 [N]
    prompt_index: np.ndarray  # int32 [N]
    boxes: np.ndarray  # fp32 [N,K,4] cxcywh in 0..1; K may be 0
    box_labels: np.ndarray  # int32 [N,K]: 1, 0 or -10 (padding, last)

    @property
    def boxes_per_pair(self) -> np.ndarray:
        """Real boxes of each pair [N]."""
        return (self.box_labels >= 0).sum(1)


def make_sample(
    pixel_values: np.ndarray,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    boxes: Mapping[int, Sequence[Sequence[float]]] | None = None,
    slots: int = 0,
) -> Sample:
    """A Sample of `pairs` (image, prompt). `boxes` maps a pair to rows (cx, cy, w, h, label); every pair has `slots`
    boxes, of which the rest is padding."""
    encoded = tokenizer.encode_batch(list(prompts))
    coordinates = np.zeros((len(pairs), slots, 4), np.float32)
    labels = np.full((len(pairs), slots), -10, np.int32)
    for pair, rows in (boxes or {}).items():
        for k, (*box, label) in enumerate(rows):
            coordinates[pair, k], labels[pair, k] = box, int(label)
    image_index, prompt_index = np.array(pairs, np.int32).reshape(-1, 2).T.copy()
    return Sample(
        pixel_values,
        np.array([e.ids for e in encoded], np.int32),
        np.array([e.attention_mask for e in encoded], np.int32),
        image_index,
        prompt_index,
        coordinates,
        labels,
    )


def all_expected_outputs(
    model: Sam3Model, samples: Sequence[Sample], device: str = "cpu"
) -> list[dict[str, np.ndarray]]:
    """`expected_outputs` of samples with the same frames, whose image features are computed once.

    They are computed on `device`, in full fp32 there too; afterwards the model is on the CPU again.
    """
    try:
        model.to(device)  # type: ignore[arg-type]  # transformers' annotation knows no strings
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            vision = see(model, samples[0])
            return [expected_outputs(model, sample, vision) for sample in samples]
    finally:
        model.to("cpu")  # type: ignore[arg-type]


def reference_device() -> str:
    """`cuda` where a GPU has the memory for the real-size model in fp32, else `cpu`, where the same takes minutes."""
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] >= REFERENCE_BYTES:
        return "cuda"
    return "cpu"


def see(model: Sam3Model, sample: Sample) -> Sam3VisionEncoderOutput:
    """The features that the model's vision encoder computes of the sample's frames."""
    return model.get_vision_features(torch.from_numpy(sample.pixel_values).to(model.device).float() / 127.5 - 1.0)


@torch.no_grad()
def expected_outputs(
    model: Sam3Model, sample: Sample, vision: Sam3VisionEncoderOutput | None = None
) -> dict[str, np.ndarray]:
    """fp32 outputs of `model` under the names of `ensemble/spec.py`; `mask_logits` are of all queries [N,Q,4p,4p].

    `text_features` [P,L,C] are zero at padding. `geometry_features` [N,K+1,C] are in the order of the spec (class token
    first), zero at padding and for pairs without boxes, for which Sam3Model makes none.
    """
    vision = vision or see(model, sample)
    ids, mask = (torch.from_numpy(tokens).to(model.device).long() for tokens in (sample.input_ids, sample.text_mask))
    text = model.get_text_features(input_ids=ids, attention_mask=mask, return_dict=True).pooler_output
    rows = [_run_pair(model, sample, n, vision, ids, mask) for n in range(len(sample.image_index))]
    out = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    for level in range(3):
        out[f"fpn_{level}"] = vision.fpn_hidden_states[level].numpy(force=True)
    out["hidden"] = vision.last_hidden_state.numpy(force=True)  # what a tracker reads
    out["text_features"] = (text * mask[..., None]).numpy(force=True)
    return out


def _run_pair(
    model: Sam3Model, sample: Sample, n: int, vision: Sam3VisionEncoderOutput, ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, np.ndarray]:
    image, prompt, count = int(sample.image_index[n]), int(sample.prompt_index[n]), int(sample.boxes_per_pair[n])
    one = Sam3VisionEncoderOutput(
        last_hidden_state=vision.last_hidden_state[image : image + 1],
        fpn_hidden_states=tuple(f[image : image + 1] for f in vision.fpn_hidden_states),
        fpn_position_encoding=tuple(f[image : image + 1] for f in vision.fpn_position_encoding),
    )
    exemplars: dict[str, torch.Tensor] = {}
    if count:
        exemplars = {
            "input_boxes": torch.from_numpy(sample.boxes[n : n + 1]).to(model.device),
            "input_boxes_labels": torch.from_numpy(sample.box_labels[n : n + 1]).to(model.device).long(),
        }
    text = slice(prompt, prompt + 1)
    with _captured(model) as seen:
        found = model(vision_embeds=one, input_ids=ids[text], attention_mask=mask[text], **exemplars)
    geometry = np.zeros((1, sample.boxes.shape[1] + 1, seen["encoder"].last_hidden_state.shape[-1]), np.float32)
    if count:
        tokens = seen["geometry"].last_hidden_state.numpy(force=True)
        # Its class token follows the real boxes.
        geometry[:, 0], geometry[:, 1 : count + 1] = tokens[:, count], tokens[:, :count]
    return {
        "pred_logits": found.pred_logits.numpy(force=True),
        "pred_boxes": found.pred_boxes.numpy(force=True),
        "presence_logits": found.presence_logits.numpy(force=True),
        "query_features": seen["decoder"].intermediate_hidden_states[-1].numpy(force=True),
        "memory": seen["encoder"].last_hidden_state.numpy(force=True),
        "mask_logits": found.pred_masks.numpy(force=True),
        "geometry_features": geometry,
    }


@contextmanager
def _captured(model: Sam3Model) -> Iterator[dict[str, Any]]:
    """What geometry encoder, encoder and decoder return while the block runs."""
    seen: dict[str, Any] = {}
    parts = {"geometry": model.geometry_encoder, "encoder": model.detr_encoder, "decoder": model.detr_decoder}
    handles = [
        part.register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output))
        for name, part in parts.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def scores(outputs: Arrays) -> np.ndarray:
    """sigmoid(pred_logits) * sigmoid(presence_logits): [N,Q]."""
    logits, presence = outputs["pred_logits"].astype(np.float64), outputs["presence_logits"].astype(np.float64)
    return 1 / (1 + np.exp(-logits)) / (1 + np.exp(-presence))
