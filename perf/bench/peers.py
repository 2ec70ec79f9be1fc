"""This server and transformers' model on the same frames and the same classes: milliseconds a frame, and ratios.

The peers do what their documentation shows: transformers' eager model class by class, with its own post-processing to
masks of the frame's size; the same with the vision encoder run once for all classes; and that through `torch.compile`
where asked for. The contestants take turns frame by frame, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from clients.connection import Client
from ensemble.preprocess.cpu import to_pixel_values
from ensemble.server.requirements import ServerError
from ensemble.spec import DEFAULT_THRESHOLD
from perf import record
from perf.console import make_parser, refuse, size, wide_console
from perf.sweep import inputs
from perf.sweep.inputs import SampleFrame
from perf.sweep.target import add_server_options, serving

EXAMPLES = """examples:
  sam3-perf bench peers --repository build/repository --checkpoint export/tiny/checkpoint --resolution 252
  sam3-perf bench peers --url gpu:8001 --checkpoint facebook/sam3 --resolution 1008 --device cuda --compile"""

Contestant = Callable[[SampleFrame, list[str]], int]
"""Looks for the names in a picture and returns how many objects it found."""


def transformers_contestants(
    checkpoint: str, resolution: int, device: str, compiled: bool, threshold: float
) -> dict[str, Contestant]:
    """transformers' `Sam3Model` at that resolution, in the ways its users run it. Raises ValueError for a checkpoint
    that cannot be loaded."""
    import torch
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    from export.checkpoint import at_size, load

    source = load(checkpoint)
    processor = Sam3ImageProcessor()  # for its post-processing, which no checkpoint changes
    model = at_size(source.model, resolution, source.record.num_queries).to(device).eval()
    if device != "cpu":
        model = model.to(torch.bfloat16)

    def prepare(picture: SampleFrame, names: list[str]) -> tuple[Any, Any, Any]:
        image = Image.open(io.BytesIO(picture.jpeg)).convert("RGB")
        pixels = torch.from_numpy(to_pixel_values(image, resolution)).to(device, model.dtype)[None] / 127.5 - 1
        encoded = source.tokenizer.encode_batch(names)
        ids, mask = ([getattr(e, kind) for e in encoded] for kind in ("ids", "attention_mask"))
        tokens = torch.tensor(ids, device=device), torch.tensor(mask, device=device)
        return (image.height, image.width), pixels, tokens

    def finish(found: Any, size: tuple[int, int]) -> int:
        answer = processor.post_process_instance_segmentation(found, threshold=threshold, target_sizes=[size])[0]
        return len(answer["scores"].cpu())

    @torch.no_grad()
    def class_by_class(picture: SampleFrame, names: list[str]) -> int:
        size, pixels, (ids, mask) = prepare(picture, names)
        rows = range(len(names))
        return sum(
            finish(model(pixel_values=pixels, input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]), size)
            for i in rows
        )

    def vision_once(forward: Any, encode: Any) -> Contestant:
        @torch.no_grad()
        def detect(picture: SampleFrame, names: list[str]) -> int:
            size, pixels, (ids, mask) = prepare(picture, names)
            seen, rows = encode(pixels), range(len(names))
            return sum(
                finish(forward(vision_embeds=seen, input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]), size)
                for i in rows
            )

        return detect

    found: dict[str, Contestant] = {
        "transformers, class by class": class_by_class,
        "transformers, vision once": vision_once(model, model.get_vision_features),
    }
    if compiled:
        found["transformers, vision once, torch.compile"] = vision_once(
            torch.compile(model), torch.compile(model.get_vision_features)
        )
    return found


@contextlib.contextmanager
def this_server(url: str, model: str, threshold: float) -> Iterator[Contestant]:
    """The server over gRPC, one frame at a time, with packed masks."""
    with Client(url, model=model, timeout=120) as client:

        def detect(picture: SampleFrame, names: list[str]) -> int:
            return len(client.detect(picture.jpeg, names, threshold=threshold, mask_format="bits"))

        yield detect


def race(
    contestants: dict[str, Contestant], frames: Sequence[SampleFrame], classes: int, rounds: int
) -> list[dict[str, Any]]:
    """A row per contestant: median milliseconds a frame, frames a second, how often it is as fast as the first one,
    objects found in all frames."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    objects = dict.fromkeys(contestants, 0)
    for turn in track(range(rounds + 1), description="rounds", console=wide_console(), transient=True):
        for picture in frames if turn else frames[:2]:  # the first round warms up
            for name, detect in contestants.items():
                start = time.perf_counter()
                found = detect(picture, inputs.classes_of(picture, classes))
                if turn:
                    times[name].append((time.perf_counter() - start) * 1e3)
                    objects[name] += found if turn == 1 else 0
    medians = {name: float(np.median(values)) for name, values in times.items()}
    first = next(iter(medians.values()))
    rows = []
    for name, ms in medians.items():
        figures = {"ms": round(ms, 2), "fps": round(1e3 / ms, 2), "ratio": round(first / ms, 2)}
        rows.append({"who": name, **figures, "objects": objects[name]})
    return rows


def parser() -> argparse.ArgumentParser:
    p = make_parser("bench peers", __doc__, EXAMPLES)
    add_server_options(p)
    p.add_argument(
        "--checkpoint", required=True, help="folder, hub name or `random`: what the server's models were made from"
    )
    p.add_argument("--resolution", type=int, required=True)
    p.add_argument("--classes", type=int, default=4, help="default %(default)s")
    p.add_argument("--frames", type=int, default=8, help="default %(default)s")
    p.add_argument("--frame", default="640x360", help="size of the frames; default %(default)s")
    p.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="least score; default %(default)s")
    p.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    p.add_argument(
        "--device", default="cpu", help="of transformers' model: cpu (fp32) or cuda (bf16); default %(default)s"
    )
    p.add_argument("--compile", action="store_true", help="also transformers through torch.compile")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured; 2: a server or a checkpoint is missing, and stderr says which."""
    p = parser()
    options = p.parse_args(argv)
    try:
        for name in ("classes", "frames", "rounds"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
        with serving(options, [options.resolution] if options.repository else ()) as target:
            model = f"sam3_r{options.resolution}"
            if model not in target.models():
                raise ServerError(
                    f"{model} is not loaded; export it with sam3-export --resolution {options.resolution}"
                )
            others = transformers_contestants(
                options.checkpoint, options.resolution, options.device, options.compile, options.threshold
            )
            shown = inputs.pictures(options.frames, *size(options.frame))
            with this_server(target.grpc, model, options.threshold) as server:
                rows = race(others | {"this server": server}, shown, options.classes, options.rounds)
    except (ServerError, ValueError) as error:
        return refuse(p.prog, error)
    data = record.new(p.prog, argv) | {"frame": options.frame, "threshold": options.threshold, "rows": rows}
    title = f"{options.resolution}, {options.classes} classes, one frame at a time"
    record.publish(options.output, data, title)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
