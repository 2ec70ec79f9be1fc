"""Tracks through occlusions and crossings: the small checkpoint's propagated masks beside ByteTrack on the detections
of the same detector, on held-out drawn videos with exact ground truth.

Both are asked for the classes of all objects in the video; ids are judged on masks: a track of ByteTrack shows its
detection's. The tracker runs in PyTorch, frame by frame, and gets detections every k-th frame; ByteTrack gets them on
each. J&F is that of objects whose mask was given once, without the detector, so it is the
same for every k; `j_and_f_fp16` is that of a tracker whose every layer rounds to fp16.

With --repository only the frames a second are measured, of the server's flow, and written into the rows that --output
already has: on a quiet machine, at another time than the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product, repeat
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clients.detections import Detections as Found
from clients.fleet.tracks import Tracker
from ensemble.server.requirements import ServerError
from export.tiny import CHECKPOINT
from export.tiny.configuration import RESOLUTIONS
from export.tiny.predictor import Detections, TorchPredictor, load_model
from export.tiny.shapes import COLOURS
from export.tiny.video.evaluate import (
    FRAMES,
    Judged,
    Video,
    held_out_video,
    judge,
    load_tracker,
    mean_figures,
    round_to_fp16,
)
from export.tiny.video.identity import FrameOverlap, Identity, identity
from export.tiny.video.session import Seen, Session, detect, features, overlap
from perf import record
from perf.bench.tracking_speed import HOW, fill, speeds
from perf.console import make_parser, refuse

Row = dict[str, Any]
Pairs = Sequence[tuple[int, Sequence[int]]]  # a detector's resolution, and those of the trackers beside it

LEAST_AREA = 60  # pixels of an object that can be seen; fewer are no object for this frame
HARD = ("occluder", "twins")
EXAMPLES = """examples:
  sam3-perf bench tracking --resolution 252 --tracker-resolution 252 140 --every 1 4 --output build/video.json
  sam3-perf bench tracking --resolution 252 --tracker-resolution 252 140 --every 1 4 --videos 5 \\
    --repository build/videos --output build/video.json"""


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


def by_bytetrack(
    detections: Sequence[Sequence[Detections]], names: Sequence[str], size: tuple[int, int]
) -> Iterator[list[Seen]]:
    """What ByteTrack shows in each frame of that size (height, width): the detections that have a track."""
    tracker = Tracker(fps=15.0)
    for found in detections:
        scores = np.concatenate([d.scores for d in found])
        boxes = np.concatenate([d.boxes for d in found]).astype(np.float32)
        classes = np.concatenate([np.full(len(d.scores), k) for k, d in enumerate(found)]).astype(np.int32)
        answer = Found(
            boxes=boxes,
            scores=scores,
            class_ids=classes,
            classes=tuple(names),
            presence=np.array([d.presence for d in found], np.float32),
            frame_size=size,
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
            full = F.interpolate(torch.from_numpy(mask)[None, None], size=size, mode="bilinear")[0, 0] > 0
            if number >= 0 and full.any():
                shown.append(Seen(int(number), name, full.numpy()))
        yield shown


def measure(numbers: Sequence[int], pairs: Pairs, every: Sequence[int], frames: int = FRAMES) -> Iterator[list[Row]]:
    """After each video the rows so far: one for each detector, each of its trackers, and each k of `every`. `_hard` are
    the figures of videos with occluders and crossing twins, `_easy` those of the others. A frame goes through each
    detector once, and through the trunk once for each resolution of a tracker."""
    trackers = list(dict.fromkeys(ours for _, chosen in pairs for ours in chosen))
    network = load_tracker(CHECKPOINT, tuple(trackers))
    rounded = round_to_fp16(network)
    detectors = {r: TorchPredictor(*load_model(CHECKPOINT, r), r) for r, _ in pairs}
    counts: dict[object, list[tuple[str, Identity]]] = {}
    judged: dict[object, list[Judged]] = {}
    for done, number in enumerate(numbers, 1):
        video = held_out_video(number, frames)
        names, size = names_of(video), (video.maps.shape[1], video.maps.shape[2])
        wanted = [there(video, t, names) for t in range(len(video.frames))]
        seen = {ours: [features(network, frame, ours) for frame in video.frames] for ours in trackers}
        for ours in trackers:
            judged.setdefault(ours, []).extend(judge(network, video, ours))
            judged.setdefault((ours, "fp16"), []).extend(judge(rounded, video, ours))
        for resolution, chosen in pairs:
            found = [detect(detectors[resolution], frame, names) for frame in video.frames]
            runs: dict[object, Iterator[list[Seen]]] = {resolution: by_bytetrack(found, names, size)}
            for ours, k in product(chosen, every):
                session = Session(network, names, ours, k)
                runs[resolution, ours, k] = map(session.frame, seen[ours], found, repeat(size))
            for run, shown in runs.items():
                table = [overlaps(visible, tracks) for visible, tracks in zip(wanted, shown, strict=True)]
                counts.setdefault(run, []).append((video.kind, identity(table)))
        yield [
            {
                **{"resolution": resolution, "tracker_resolution": ours, "detect_every": k, "videos": done},
                **figures(counts[resolution, ours, k]),
                **{f"bytetrack_{name}": value for name, value in figures(counts[resolution]).items()},
                "objects": len(judged[ours]),
                "j_and_f": mean_figures(judged[ours])["j_and_f"],
                "j_and_f_fp16": mean_figures(judged[ours, "fp16"])["j_and_f"],
            }
            for resolution, chosen in pairs
            for ours, k in product(chosen, every)
        ]


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
    help_ = "of the tracker; those above a detector's are left out for it; default: the detector's"
    parser.add_argument("--tracker-resolution", type=int, nargs="+", help=help_)
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="detections in every k-th frame")
    parser.add_argument("--videos", type=int, default=20, help=f"held-out videos of {FRAMES} frames")
    parser.add_argument("--repository", type=Path, help="of sam3-export --video: its speed, into the rows of --output")
    record.add_output(parser)
    options = parser.parse_args(argv)
    head = record.new(parser.prog, argv)
    pairs = paired(options.resolution, options.tracker_resolution)
    if not all(chosen for _, chosen in pairs):
        return refuse(parser.prog, f"expected a tracker of at most {min(options.resolution)} pixels, the detector's")
    if options.repository:
        try:
            data = add_speed(head, pairs, options)
        except (ServerError, FileNotFoundError) as error:
            return refuse(parser.prog, error)
        record.write(options.output, data)
    else:
        head["setting"] = {"frames": FRAMES, "engine": "PyTorch, not the server"}
        for rows in measure(range(options.videos), pairs, options.every):
            data = {**head, "rows": rows}
            record.write(options.output, data)  # whole after each video, so that an interruption leaves fewer
            print(f"{rows[0]['videos']} of {options.videos} videos", file=sys.stderr, flush=True)
    print(json.dumps({"output": str(options.output), "rows": data["rows"]}))
    return 0


def paired(resolutions: Sequence[int], trackers: Sequence[int] | None) -> Pairs:
    """Each detector's resolution with those of the trackers that it can have."""
    return [(r, [ours for ours in trackers if ours <= r] if trackers else [r]) for r in resolutions]


def add_speed(head: Row, pairs: Pairs, options: argparse.Namespace) -> Row:
    """The file's content with `fps` and `cpu_ms` in its rows. Raises FileNotFoundError where there is none yet."""
    data = json.loads(options.output.read_text())
    load = [round(os.getloadavg()[0], 1)]
    films = [held_out_video(number) for number in range(options.videos)]
    videos = [(film, names_of(film)) for film in films]
    for resolution, chosen in pairs:
        for row in speeds(options.repository, resolution, chosen, options.every, videos):
            print(json.dumps(row), file=sys.stderr, flush=True)
            fill(data["rows"], [row])
    load.append(round(os.getloadavg()[0], 1))
    about = {name: head[name] for name in ("command", "date", "versions", "machine")}
    data["speed"] = {**about, "how": HOW, "load_before_and_after": load}
    return data


if __name__ == "__main__":
    sys.exit(main())
