"""What the whole server is measured against, on the same frames: its own engines alone, and transformers as its
documentation shows it.

The engines' rate is that of one stream of calls with everything at hand: a batch through the vision encoder, then
decoder and mask head for its pairs. transformers' user path is the whole of it, from JPEG files to masks of the frame's
size: nvJPEG and its own processor on the GPU, the features once for the batch, then a class at a time.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ensemble.preprocess.cpu import decode, to_pixel_values
from ensemble.spec import ENGINES, Variant
from perf.sweep import inputs
from perf.sweep.inputs import SampleFrame


def engines_fps(
    repository: Path, variant: Variant, shown: Sequence[SampleFrame], classes: int, picks: int, seconds: float
) -> float | None:
    """Frames a second of the repository's compiled packages, called from one process; None for engines that only Triton
    runs."""
    from perf.bench.engines.candidates import Work, aoti

    paths = {m.part: repository / m.name / "1" / ENGINES["aoti"].artifact for m in variant.sub_models}
    if not all(path.is_file() for path in paths.values()) or not torch.cuda.is_available():
        return None
    engine = aoti({part: paths[part] for part in ("vision_encoder", "text_encoder", "decoder", "mask_head")})
    pixels = np.stack([to_pixel_values(decode(picture.jpeg), variant.resolution) for picture in shown])
    pairs = torch.arange(len(shown) * classes, dtype=torch.int32, device="cuda")
    ids = torch.randint(3, 200, (classes, variant.checkpoint.context_length), dtype=torch.int32, device="cuda")
    mask = (torch.arange(ids.shape[1], device="cuda")[None] < 4).int().expand(len(pairs), -1).contiguous()
    chosen = torch.arange(picks, dtype=torch.int32, device="cuda").expand(len(pairs), -1).contiguous()
    work = Work(torch.from_numpy(pixels).cuda(), ids, pairs // classes, torch.empty(0), mask, pairs, chosen)
    assert engine.text, "it is among the packages"
    prompts = engine.text(work)["text_features"][(pairs % classes).long()].contiguous()
    work = Work(work.pixel_values, ids, work.image_index, prompts, mask, pairs, chosen)

    def call() -> None:
        engine.decode(engine.encode(work), work)
        torch.cuda.synchronize()

    return rate(call, len(shown), seconds)


def transformers_fps(
    checkpoint: str,
    resolution: int,
    shown: Sequence[SampleFrame],
    classes: int,
    picks: int,
    device: str,
    seconds: float,
) -> float:
    """Frames a second of transformers' `Sam3Model` in bfloat16 (fp32 on a CPU), all of `shown` as one batch.

    The threshold lets through what the best `picks` queries of a pair score, on average.
    """
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    from export.checkpoint import at_size, load

    source = load(checkpoint)
    model: Any = at_size(source.model, resolution, source.record.num_queries).to(device).eval()
    if device != "cpu":
        model = model.to(torch.bfloat16)
    processor = Sam3ImageProcessor(size={"height": resolution, "width": resolution})
    encoded = [source.tokenizer.encode(name) for name in inputs.classes_of(shown[0], classes)]
    prompts = [
        {
            "input_ids": torch.tensor([e.ids] * len(shown), device=device),
            "attention_mask": torch.tensor([e.attention_mask] * len(shown), device=device),
        }
        for e in encoded
    ]
    threshold: list[float] = []

    @torch.no_grad()
    def call() -> None:
        frames = load_frames(shown, device)
        pixels = processor(images=frames, return_tensors="pt", device=device)["pixel_values"].to(model.dtype)
        features = model.get_vision_features(pixels)
        for prompt in prompts:
            found = model(vision_embeds=features, **prompt)
            if not threshold:
                scores = found.pred_logits.sigmoid() * found.presence_logits.sigmoid()
                threshold.append(float(scores.float().quantile(1 - picks / scores.shape[1])))
            sizes = [tuple(frame.shape[-2:]) for frame in frames]
            answers = processor.post_process_instance_segmentation(found, threshold=threshold[0], target_sizes=sizes)
            for answer in answers:
                answer["scores"].cpu()

    return rate(call, len(shown), seconds)


def load_frames(shown: Sequence[SampleFrame], device: str) -> list[torch.Tensor]:
    """uint8 [3,H,W] of each file, decoded by nvJPEG on a GPU."""
    if device == "cpu":
        return [
            torch.from_numpy(np.array(Image.open(io.BytesIO(p.jpeg)).convert("RGB"))).permute(2, 0, 1) for p in shown
        ]
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [torch.frombuffer(bytearray(p.jpeg), dtype=torch.uint8) for p in shown]
    return list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))


def rate(call: Callable[[], None], frames: int, seconds: float) -> float:
    """Frames a second over so many seconds, after a warm-up of half of them, of calls that each do `frames` and wait
    for their end."""
    for length in (seconds / 2, seconds):
        start, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - start < length:
            call()
            calls += 1
        spent = time.perf_counter() - start
    return round(calls * frames / spent, 2)
