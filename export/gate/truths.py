"""Makes the truths by which artifacts are measured where they are served: see `ensemble/gate/truths.py`.

Everything comes from transformers' own forward pass, as in `export/gate/reference.py`. It is run once more for decoder
and mask head, on the feature maps that the file holds small, and its mask decoder on memory rounded to fp16, so that
the file can hold that in half the bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from ensemble.gate import tracker as tracker_gate
from ensemble.gate import truths
from ensemble.gate.truths import LEVELS
from ensemble.spec import Variant
from export.checkpoint import Source, at_size
from export.checkpoint.tracker import LoadedTracker
from export.gate.frames import Frame
from export.gate.reference import Sample, expected_outputs, make_sample, reference_device, scores, see
from export.gate.tracker.truths import tracker_arrays
from export.gate.verify import prompt_inputs, strongest
from export.sub_models.parts import PARTS
from export.sub_models.tracker.parts import TRACKER_PARTS

MOST_PICKS = 4
"""Queries of a row of the mask head."""


def truths_hash(source: Source, variant: Variant, frames: Sequence[Frame]) -> str:
    """Hash of what the truths depend on: weights, sizes, frames, and the code that makes them; not the engine."""
    sizes = {n: v for n, v in variant.to_dict().items() if n not in ("precision", "front_instances", "queue_delay_us")}
    parts = (*PARTS, *TRACKER_PARTS[:1]) if variant.tracker else PARTS  # the tracker's have one fingerprint together
    digest = hashlib.sha256(json.dumps([[source.part_sha256(part) for part in parts], sizes]).encode())
    for frame in frames:
        digest.update(frame.pixels.tobytes() + repr((frame.prompts, frame.box)).encode())
    own = Path(__file__).parent / "tracker"
    tracked = (Path(tracker_gate.__file__), *sorted(own.glob("*.py"))) if variant.tracker else ()
    for file in (Path(__file__), Path(truths.__file__), *tracked):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def store_truths(source: Source, variant: Variant, frames: Sequence[Frame], folder: Path, force: bool = False) -> bool:
    """Writes the truths of a variant into its front model's folder, unless they are there. Returns whether it did."""
    path, made_from = folder / truths.FILE, truths_hash(source, variant, frames)
    if not force and truths.made_from(path) == made_from:
        return False
    sized, device = at_size(source.model, variant.resolution, variant.queries), reference_device()
    tracker = source.tracker.at_size(variant.resolution) if source.tracker and variant.tracker else None
    truths.write(path, variant, made_from, make_truths(sized, frames, source.tokenizer, variant, device, tracker))
    return True


def make_truths(
    model: Sam3Model,
    frames: Sequence[Frame],
    tokenizer: Tokenizer,
    variant: Variant,
    device: str = "cpu",
    tracker: LoadedTracker | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of the file, of a tracker's sub-models too where there is one, computed on `device`; afterwards the
    model is on the CPU again."""
    text, boxes = _samples(frames, tokenizer, variant)
    try:
        model.to(device)  # type: ignore[arg-type]  # transformers' annotation knows no strings
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False), _rounded_memory(model):
            vision = see(model, text)
            small = {
                name: F.adaptive_avg_pool2d(level[:1], variant.patches).half().numpy(force=True)
                for name, level in zip(LEVELS, vision.fpn_hidden_states, strict=False)
            }
            images = len(text.pixel_values)
            given = _with_maps(vision, truths.feature_maps(small, images))
            outputs = {"text": expected_outputs(model, text, given), "boxes": expected_outputs(model, boxes, given)}
            seen = [level.numpy(force=True) for level in vision.fpn_hidden_states]
    finally:
        model.to("cpu")  # type: ignore[arg-type]
    arrays: dict[str, Any] = {
        "images": np.int32(images),
        "pixel_values": text.pixel_values,
        "input_ids": text.input_ids,
        **{f"features/{name}": level for name, level in small.items()},
    }
    for name, level in zip(LEVELS, seen, strict=False):
        _want(arrays, f"want/{name}", level)
    if tracker:
        hidden = vision.last_hidden_state.numpy(force=True)
        _want(arrays, "want/hidden", hidden)
        arrays |= tracker_arrays(tracker, hidden, variant, device)
    # What the text encoder answers at padding nobody reads: the truth is of real tokens, which are kept whole.
    _want(arrays, "want/text_features", outputs["text"]["text_features"])
    arrays["text_mask"] = text.text_mask
    for key, sample in (("text", text), ("boxes", boxes)):
        _add_sample(arrays, key, sample, outputs[key], variant)
    return arrays


def _samples(frames: Sequence[Frame], tokenizer: Tokenizer, variant: Variant) -> tuple[Sample, Sample]:
    """The same pairs without and with exemplar boxes: one box in the first, two, one of them negative, in the rest."""
    frames = frames[: min(2, variant.max_batch)]
    pixels = np.stack([frame.pixels for frame in frames])
    prompts = list(dict.fromkeys(name for frame in frames for name in frame.prompts[:2]))[: variant.max_pairs]
    last = len(prompts) - 1
    pairs = [(0, 0), (len(frames) - 1, last), (len(frames) - 1, 0)][: variant.max_pairs]
    negative = (0.1, 0.15, 0.15, 0.2, 0)
    shown = {
        n: [(*frames[image].box, 1), negative][: min(1 + n, variant.max_boxes)] for n, (image, _) in enumerate(pairs)
    }
    plain = make_sample(pixels, tokenizer, prompts, pairs)
    two = pairs[:2]
    return plain, make_sample(
        pixels, tokenizer, prompts, two, {n: shown[n] for n in range(len(two))}, variant.max_boxes
    )


def _add_sample(
    arrays: dict[str, Any], key: str, sample: Sample, outputs: dict[str, np.ndarray], variant: Variant
) -> None:
    slots = sample.boxes.shape[1]
    features, mask = prompt_inputs(sample, outputs["text_features"], outputs["geometry_features"] if slots else None)
    given = {"image_index": sample.image_index, "prompt_features": features, "prompt_mask": mask}
    wanted = ["pred_logits", "pred_boxes", "presence_logits", "query_features", "memory"]
    if slots:
        picks = strongest(scores(outputs), min(MOST_PICKS, variant.max_picks))
        pairs = np.arange(len(picks), dtype=np.int32)[::-1].copy()  # rows in another order than pairs
        given |= {"boxes": sample.boxes, "box_labels": sample.box_labels}
        given |= {"memory": outputs["memory"].astype(np.float16), "query_features": outputs["query_features"]}
        given |= {"pair_index": pairs, "query_index": picks[pairs]}
        logits = np.take_along_axis(outputs["mask_logits"][pairs], picks[pairs][..., None, None], 1)
        _want(arrays, f"want/{key}/mask_logits", logits)
        wanted.append("geometry_features")
    for name in wanted:
        _want(arrays, f"want/{key}/{name}", outputs[name])
    arrays |= {f"{key}/{name}": array for name, array in given.items()}


def _want(arrays: dict[str, Any], name: str, output: np.ndarray) -> None:
    arrays |= {f"{name}/{kind}": array for kind, array in truths.keep(output).items()}


def _with_maps(vision: Sam3VisionEncoderOutput, maps: dict[str, np.ndarray]) -> Sam3VisionEncoderOutput:
    """The encoder's output with other feature maps; the last level, which nothing reads, stays."""
    device = vision.fpn_hidden_states[0].device
    levels = tuple(torch.from_numpy(maps[name]).to(device) for name in LEVELS)
    return replace(vision, fpn_hidden_states=(*levels, *vision.fpn_hidden_states[len(LEVELS) :]))


@contextmanager
def _rounded_memory(model: Sam3Model) -> Iterator[None]:
    """While the block runs, the mask decoder is given memory rounded to fp16."""

    def rounded(_module: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, named | {"encoder_hidden_states": named["encoder_hidden_states"].half().float()}

    handle = model.mask_decoder.register_forward_pre_hook(rounded, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
