"""What a GPU's INT8 is calibrated by: inputs of the sub-models, made of frames and words.

Of each frame `Sam3Model` in fp32 computes what the sub-models before one hand to it, with words alone and with words
and example boxes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from transformers import Sam3Model

from ensemble.gate.limits import IN_INT8
from ensemble.records import NUMPY_DTYPES
from ensemble.spec import Variant
from export.checkpoint import RANDOM, Source
from export.gate.frames import Frame, drawn_frames, gate_samples
from export.gate.reference import Arrays, Sample, all_expected_outputs, reference_device, scores
from export.gate.verify import feeds_of, strongest
from export.slim.calibration import DRAWN_FRAMES
from export.tiny.configuration import RESOLUTIONS

Feeds = list[Mapping[str, np.ndarray]]
PROMPTS_A_FRAME = 2
"""Words that `gate_samples` looks for in each frame; frames take turns."""


def check_words(words: Sequence[str]) -> None:
    """Raises ValueError where there are none, or an empty one."""
    if not words or not all(word.strip() for word in words):
        raise ValueError(
            "expected names of things to calibrate int8 on, as in --calibration-prompts person car, got"
            f" {' '.join(map(repr, words)) or 'none'}; name what your cameras look for"
        )


def check_frames(source: Source, given: bool) -> None:
    """Raises ValueError where no frames are `given` for a checkpoint that has learnt other things than drawn scenes."""
    if not given and source.name != RANDOM and source.record.image_size > RESOLUTIONS[0]:
        raise ValueError(
            f"expected frames to calibrate int8 of {source.name} on, got none: drawn scenes do not show what it sees;"
            " name a folder of your cameras' frames with --calibration-frames, and what they look for with"
            " --calibration-prompts"
        )


def calibration_scenes(pixels: Sequence[np.ndarray], words: Sequence[str], resolution: int) -> list[Frame]:
    """Frames uint8 [3,R,R] with words in turn and a box in the middle; drawn scenes with their own where there are no
    frames."""
    if not len(pixels):
        return drawn_frames(DRAWN_FRAMES, resolution)
    turns = [
        tuple(words[(PROMPTS_A_FRAME * n + k) % len(words)] for k in range(len(words))) for n in range(len(pixels))
    ]
    return [Frame(frame, turn, (0.5, 0.5, 0.4, 0.4)) for frame, turn in zip(pixels, turns, strict=True)]


def digest(frames: Sequence[Frame], method: str, source: Source) -> str:
    """Hash of everything that scales depend on."""
    found = hashlib.sha256(json.dumps([method, [source.part_sha256(part) for part in IN_INT8]]).encode())
    for frame in frames:
        found.update(frame.pixels.tobytes() + repr((frame.prompts, frame.box)).encode())
    return found.hexdigest()


def calibration_inputs(frames: Sequence[Frame], source: Source, sized: Sam3Model, variant: Variant) -> dict[str, Feeds]:
    """Inputs of each sub-model that is computed in INT8."""
    found: dict[str, Feeds] = {part: [] for part in IN_INT8}
    for frame in frames:
        samples = gate_samples([frame], source.tokenizer, variant)
        truths = all_expected_outputs(sized, samples, reference_device())
        for part in IN_INT8:
            feeds = int8_feeds(variant, part, samples, truths)
            found[part] += feeds[:1] if part == "vision_encoder" else feeds  # which is given the frame alone
    return found


def int8_feeds(variant: Variant, part: str, samples: Sequence[Sample], truths: Sequence[Arrays]) -> Feeds:
    """Inputs of a sub-model for each sample, of what `Sam3Model` answers to it."""
    inputs = getattr(variant, part).inputs
    feeds: Feeds = []
    for sample, truth in zip(samples, truths, strict=True):
        feed = feeds_of(sample, truth, strongest(scores(truth), variant.max_picks))[part]
        feeds.append({t.name: np.asarray(feed[t.name], NUMPY_DTYPES[t.dtype]) for t in inputs})
    return feeds
