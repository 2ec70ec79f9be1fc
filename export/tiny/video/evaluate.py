"""The small tracker on held-out drawn videos: J, F and their mean, by kind of video and resolution.

Every object gets its drawn mask on the first frame in which at least half of what is ever seen of it can be seen, and
is followed from there to the end. Frames after that one count, those in which it is hidden too: an empty mask is right
then, and any other wrong.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from export.tiny import CHECKPOINT
from export.tiny.configuration import PATCH, RESOLUTIONS
from export.tiny.dataset import to_square
from export.tiny.random_scene import validation_seeds
from export.tiny.video.clips import KINDS, random_clip
from export.tiny.video.configuration import load_tracker_weights, random_video_model
from export.tiny.video.metrics import boundary, region
from export.tiny.video.network import TrackerNetwork
from export.tiny.video.rollout import Memory, propagate

PIXELS, FRAMES, VIDEOS = 480 * 270, 40, 20
FIRST_SEED = 300_000
Judged = tuple[float, float, float]  # an object's J, F and share of frames with the right presence
MOST_OBJECTS, LEAST_AREA = 6, 150  # objects of a video, and pixels that one must show at least once
EXAMPLE = "example: python -m export.tiny.video.evaluate --videos 20 --resolution 252 140"


@dataclass(frozen=True, slots=True)
class Video:
    """A drawn video: frames uint8 RGB [T, H, W, 3], its map of objects uint8 [T, H, W], and of each object that is
    followed its value in the map and its first frame."""

    kind: str
    frames: np.ndarray
    maps: np.ndarray
    objects: tuple[tuple[int, int], ...]
    names: tuple[str, ...] = ()  # class of each value from 1 on


def held_out_video(number: int, frames: int = FRAMES, kind: str | None = None) -> Video:
    """The held-out video of a number; kinds take turns where `kind` is None."""
    seed = validation_seeds(1, FIRST_SEED + number)[0]
    clip = random_clip(seed, kind or KINDS[number % len(KINDS)])
    drawn = [clip.draw(float(t), PIXELS, supersample=2) for t in range(frames)]
    maps = np.stack([index_map for _, index_map in drawn])
    found = []
    for value in range(1, len(clip.scene.objects) + 1):
        areas = (maps == value).sum((1, 2))
        start = int(np.argmax(areas >= areas.max() / 2))
        if areas.max() >= LEAST_AREA and start < frames // 2:
            found.append((value, start))
    names = tuple(f"{o.colour} {o.shape}" for o in clip.scene.objects)
    return Video(clip.kind, np.stack([frame for frame, _ in drawn]), maps, tuple(found[:MOST_OBJECTS]), names)


def given_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask bool [H, W] at [side, side], float 0 or 1, set where most of the pixel is."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX)
    return (np.asarray(image) >= 128).astype(np.float32)


def load_tracker(tracker: Path, resolutions: tuple[int, ...], device: str = "cpu") -> TrackerNetwork:
    """The network with the weights of a training's folder or file."""
    model = random_video_model(CHECKPOINT)
    load_tracker_weights(model, tracker)
    return TrackerNetwork(model.to(device).eval(), resolutions)


def round_to_fp16(network: TrackerNetwork) -> TrackerNetwork:
    """A copy of the network in which every layer rounds its output to fp16: so do GPU engines of that precision, whose
    products add up in fp32 too."""

    def rounded(_module: nn.Module, _inputs: object, output: object) -> object:
        return output.half().float() if isinstance(output, Tensor) else output  # no tensor: tables of positions

    copy = deepcopy(network)
    for module in copy.modules():
        if not any(module.children()):
            module.register_forward_hook(rounded)
    return copy


@torch.inference_mode()
def followed(
    network: TrackerNetwork, video: Video, resolution: int, recent: int = 6
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Each object's value, first frame, masks bool [T', H, W] from there on, and scores [T']."""
    network.at(resolution)
    device, side = network.now.cos.device, 4 * resolution // PATCH
    pixels = torch.from_numpy(np.stack([to_square(frame, resolution) for frame in video.frames])).to(device)
    hidden = network.see(pixels)
    for start in sorted({start for _, start in video.objects}):
        values = [value for value, first in video.objects if first == start]
        given = np.stack([given_mask(video.maps[start] == value, side) for value in values])
        masks, scores = propagate(network, hidden[start:], torch.from_numpy(given).to(device), Memory(recent=recent))
        for n, value in enumerate(values):
            full = F.interpolate(masks[:, n : n + 1], size=video.maps.shape[1:], mode="bilinear")[:, 0]
            yield value, start, full > 0, scores[:, n]


def evaluate(
    network: TrackerNetwork, resolution: int, numbers: Sequence[int], recent: int = 6, frames: int = FRAMES
) -> dict[str, dict]:
    """Figures by kind of video, and of `all` objects: j, f, j_and_f, and the share of right presence."""
    rows: dict[str, list[Judged]] = {}
    for number in numbers:
        video = held_out_video(number, frames)
        rows.setdefault(video.kind, []).extend(judge(network, video, resolution, recent))
    every = {**rows, "all": [row for part in rows.values() for row in part]}
    return {kind: mean_figures(part) for kind, part in every.items()}


def judge(network: TrackerNetwork, video: Video, resolution: int, recent: int = 6) -> Iterator[Judged]:
    """Each object of a video."""
    for value, start, masks, scores in followed(network, video, resolution, recent):
        wanted = torch.from_numpy(video.maps[start + 1 :] == value).to(masks.device)
        j, f = region(masks[1:], wanted), boundary(masks[1:], wanted)
        right = (scores[1:] > 0) == wanted.flatten(1).any(1)
        yield float(j.mean()), float(f.mean()), float(right.float().mean())


def mean_figures(rows: Sequence[Judged]) -> dict[str, float]:
    """Of objects: how many, and the means of their figures."""
    j, f, presence = np.mean(rows, 0)
    named = {"j_and_f": (j + f) / 2, "j": j, "f": f, "presence": presence}
    return {"objects": len(rows), **{name: round(float(value), 4) for name, value in named.items()}}


def main(argv: Sequence[str] | None = None) -> dict:
    """The command line. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser("python -m export.tiny.video.evaluate", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--tracker", type=Path, default=CHECKPOINT, help="a training's or checkpoint's folder")
    parser.add_argument("--resolution", type=int, nargs="+", default=list(RESOLUTIONS))
    parser.add_argument("--videos", type=int, default=VIDEOS, help="held-out videos; default %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--maps", type=int, default=6, help="maps of the last frames in memory, 1 to 6")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    network = load_tracker(options.tracker, tuple(options.resolution), options.device)
    numbers = range(options.first, options.first + options.videos)
    results = {}
    for resolution in options.resolution:
        results[str(resolution)] = evaluate(network, resolution, numbers, options.maps)
        line = " ".join(f"{kind} {row['j_and_f']:.3f}" for kind, row in results[str(resolution)].items())
        print(f"{resolution}: {line}", file=sys.stderr, flush=True)
    print(json.dumps(results))
    return results


if __name__ == "__main__":
    main()
