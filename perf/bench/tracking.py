"""Tracks through occlusions and crossings: the small checkpoint's propagated masks beside ByteTrack on the detections
of the same detector, on held-out drawn videos with exact ground truth.

Both are asked for the classes of all objects in the video; ids are judged on masks: a track of ByteTrack shows its
detection's. The tracker runs in PyTorch, frame by frame, and gets detections every k-th frame; ByteTrack gets them on
each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clients.detections import Detections as Found
from clients.fleet.tracks import Tracker
from export.tiny import CHECKPOINT
from export.tiny.configuration import RESOLUTIONS
from export.tiny.predictor import TorchPredictor, load_model
from export.tiny.shapes import COLOURS
from export.tiny.video.evaluate import FRAMES, Video, evaluate, held_out_video, load_tracker
from export.tiny.video.identity import FrameOverlap, Identity, identity
from export.tiny.video.session import Seen, Session, detect, overlap
from perf import record
from perf.console import make_parser

LEAST_AREA = 60  # pixels of an object that can be seen; fewer are no object for this frame
HARD = ("occluder", "twins")
EXAMPLES = """example:
  sam3-perf bench tracking --resolution 252 --every 1 4 --videos 20 --output build/video.json"""


def names_of(video: Video) -> tuple[str, ...]:
    """The classes of a video's objects that the detector knows words for; occluders have none."""
    return tuple(dict.fromkeys(name for name in video.names if name.split()[0] in COLOURS))


def there(video: Video, t: int, names: Sequence[str]) -> dict[int, np.ndarray]:
    """The objects of these classes that can be seen in frame `t`, by their value in the map, with their masks."""
    values = [value for value, name in enumerate(video.names, 1) if name in names]
    masks = {value: video.maps[t] == value for value in values}
    return {value: mask for value, mask in masks.items() if mask.sum() >= LEAST_AREA}


def overlaps(wanted: dict[int, np.ndarray], seen: Sequence[Seen]) -> FrameOverlap:
    """The IoU of what is there with what was found."""
    table = np.zeros((len(wanted), len(seen)))
    for i, mask in enumerate(wanted.values()):
        table[i] = [overlap(mask, track.mask) for track in seen]
    return FrameOverlap(tuple(wanted), tuple(track.track for track in seen), table)


def by_bytetrack(video: Video, names: Sequence[str], predictor: TorchPredictor) -> Iterator[list[Seen]]:
    """What ByteTrack shows in each frame: the detections that have a track."""
    tracker = Tracker(fps=15.0)
    height, width = video.maps.shape[1:]
    for frame in video.frames:
        found = detect(predictor, frame, names)
        scores = np.concatenate([d.scores for d in found])
        boxes = np.concatenate([d.boxes for d in found]).astype(np.float32)
        classes = np.concatenate([np.full(len(d.scores), k) for k, d in enumerate(found)]).astype(np.int32)
        answer = Found(
            boxes=boxes,
            scores=scores,
            class_ids=classes,
            classes=tuple(names),
            presence=np.array([d.presence for d in found], np.float32),
            frame_size=(height, width),
            stage_ms={},
            batch=1,
            model="",
            latency_ms=0.0,
            mask_bits=np.zeros((0, 0, 0), np.uint8),
        )
        ids = tracker.update(answer)
        logits = np.concatenate([d.masks for d in found])
        shown = []
        for number, name, mask in zip(ids, answer.labels, logits, strict=True):
            full = F.interpolate(torch.from_numpy(mask)[None, None], size=(height, width), mode="bilinear")[0, 0] > 0
            if number >= 0 and full.any():
                shown.append(Seen(int(number), name, full.numpy()))
        yield shown


def measure(
    numbers: Sequence[int], resolution: int, tracker_resolution: int, every: Sequence[int], frames: int = FRAMES
) -> list[dict]:
    """A row for each k of `every`: the tracker's figures over all videos, and ByteTrack's beside them; `_hard` are
    those of videos with occluders and crossing twins, `_easy` those of the others."""
    network = load_tracker(CHECKPOINT, (tracker_resolution,))
    predictor = TorchPredictor(*load_model(CHECKPOINT, resolution), resolution)
    counts: dict[object, list[tuple[str, Identity]]] = {}
    for number in numbers:
        video = held_out_video(number, frames)
        names = names_of(video)
        wanted = [there(video, t, names) for t in range(len(video.frames))]
        runs: dict[object, Iterator[list[Seen]]] = {"bytetrack": by_bytetrack(video, names, predictor)}
        for k in every:
            runs[k] = map(Session(network, names, predictor, tracker_resolution, k).frame, video.frames)
        for run, shown in runs.items():
            table = [overlaps(visible, seen) for visible, seen in zip(wanted, shown, strict=True)]
            counts.setdefault(run, []).append((video.kind, identity(table)))
            print(f"{number} {video.kind} {run}: {figures(counts[run][-1:])}", file=sys.stderr, flush=True)
    base = {f"bytetrack_{name}": value for name, value in figures(counts["bytetrack"]).items()}
    head = {"resolution": resolution, "tracker_resolution": tracker_resolution}
    return [{**head, "detect_every": k, **figures(counts[k]), **base} for k in every]


def figures(counted: Sequence[tuple[str, Identity]]) -> dict[str, Any]:
    """HOTA, IDF1 and switches over videos, and the same over the hard kinds and over the others (`_easy`); None where
    there is no such video."""
    told: dict[str, Any] = {}
    for suffix, kinds in (("", (True, False)), ("_hard", (True,)), ("_easy", (False,))):
        part = [counts for kind, counts in counted if (kind in HARD) in kinds]
        total = reduce(add, part) if part else None
        told[f"hota{suffix}"] = round(total.hota, 4) if total else None
        told[f"idf1{suffix}"] = round(total.idf1, 4) if total else None
        told[f"id_switches{suffix}"] = total.switches if total else None
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured. The last line of stdout is one JSON object."""
    parser = make_parser("bench tracking", __doc__, EXAMPLES)
    parser.add_argument("--resolution", type=int, nargs="+", default=[RESOLUTIONS[0]], help="of the detector")
    parser.add_argument("--tracker-resolution", type=int, help="of the tracker; default: the detector's")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="detections in every k-th frame")
    parser.add_argument("--videos", type=int, default=20, help=f"held-out videos of {FRAMES} frames")
    record.add_output(parser)
    options = parser.parse_args(argv)
    head = record.new(parser.prog, argv)
    rows, numbers = [], range(options.videos)
    for resolution in options.resolution:
        ours = options.tracker_resolution or resolution
        told = evaluate(load_tracker(CHECKPOINT, (ours,)), ours, numbers)["all"]
        print(f"{resolution}: J&F {told['j_and_f']} over {told['objects']} objects", file=sys.stderr, flush=True)
        for row in measure(numbers, resolution, ours, options.every):
            rows.append({**row, "j_and_f": told["j_and_f"]})
    setting = {"videos": options.videos, "frames": FRAMES, "engine": "PyTorch, not the server"}
    record.write(options.output, {**head, "setting": setting, "rows": rows})
    print(json.dumps({"output": str(options.output), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
