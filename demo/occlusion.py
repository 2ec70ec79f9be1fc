"""Draws the film of the camera whose objects are followed: something is hidden for a time and comes back.

The drawn videos on which the small tracker is evaluated have occluders. This takes the first held-out one in which an
object is wholly covered, and writes `followed.mp4` with its ground truth, `followed.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from export.tiny.random_scene import FIRST_TRAINING_SEED, validation_seeds
from export.tiny.scenes import Rendering, SceneObject
from export.tiny.video.clips import Clip, random_clip
from export.tiny.videos import write_video

FIRST_SEED, STRIDE = 907_200, 400  # held out, and behind those of the other films and of the evaluation
FRAMES, FPS = 40, 10
SKETCH = 160 * 90  # pixels of the frames in which an occlusion is looked for
OBJECTS, LEAST_SHARE = 3, 0.006  # beside the occluder; of the frame's area
HIDDEN, WELL = 0.05, 0.5  # less, and more, than these shares of the most that is ever seen of an object
LEAST_HIDDEN, LEAST_SEEN = 4, 6  # frames; the latter before it is hidden, and after
LEAST_CONTRAST = 150.0  # Euclidean distance in RGB between the occluder and each object
EXAMPLE = "example: python -m demo.occlusion --output build/films"
Occlusion = tuple[int, int, int]
"""An object's number from 1 on, and the first and the last frame in which it is hidden."""


def occlusions(areas: np.ndarray) -> list[Occlusion]:
    """Where next to nothing is seen of an object, between two moments at which at least half of it is. `areas` are the
    pixels seen of each object in each frame, [T, K]."""
    found = []
    for k, area in enumerate(areas.T, 1):
        well, gone = np.flatnonzero(area > WELL * area.max()), np.flatnonzero(area < HIDDEN * area.max())
        for run in np.split(gone, np.flatnonzero(np.diff(gone) > 1) + 1):
            if len(run) and len(well) and well[0] < run[0] and run[-1] < well[-1]:
                found.append((k, int(run[0]), int(run[-1])))
    return found


def occluded_clip(seed: int, aspect: float) -> Clip:
    """The first clip of a seed in which all objects can be seen at the start, none of them looks like the occluder, and
    one of some size is covered for a time and comes back near to where it was."""
    numbers = validation_seeds(FIRST_TRAINING_SEED - FIRST_SEED, FIRST_SEED)
    for attempt in range(len(numbers)):
        clip = random_clip(numbers[(seed * STRIDE + attempt) % len(numbers)], "occluder", aspect)
        *objects, occluder = clip.scene.objects
        if clip.camera is None and len(objects) == OBJECTS and _stands_out(occluder, objects) and _is_covered(clip):
            return clip
    raise AssertionError("one clip in a few hundred is such a one")


def _stands_out(occluder: SceneObject, objects: Sequence[SceneObject]) -> bool:
    return all(np.linalg.norm(np.subtract(occluder.rgb, o.rgb)) >= LEAST_CONTRAST for o in objects)


def _is_covered(clip: Clip) -> bool:
    maps = np.stack([clip.draw(float(t), SKETCH)[1] for t in range(FRAMES)])
    areas, (height, width) = _areas(maps, len(clip.scene.objects) - 1), maps.shape[1:]
    well = areas > WELL * np.maximum(areas.max(0), LEAST_SHARE * maps[0].size)
    if not well[0].all():
        return False
    for k, first, last in occlusions(areas):
        path = [clip.orbits[k - 1].at(clip.scene.objects[k - 1], t) for t in range(first, last + 1)]
        inside = all(0 < o.x < 1 and 0 < o.y < 1 for o in path)  # it is covered, and has not left the frame
        way = np.hypot((path[-1].x - path[0].x) * width, (path[-1].y - path[0].y) * height)
        seen = min(well[:first, k - 1].sum(), well[last + 1 :, k - 1].sum())
        if (
            inside
            and way <= path[0].size * np.sqrt(width * height)
            and len(path) >= LEAST_HIDDEN
            and seen >= LEAST_SEEN
        ):
            return True
    return False


def _areas(maps: np.ndarray, objects: int) -> np.ndarray:
    """Pixels of each object in each frame, int64 [T, K], of maps uint8 [T, H, W]."""
    return np.stack([np.bincount(index_map.ravel(), minlength=256)[1 : objects + 1] for index_map in maps])


def record(folder: Path, height: int, width: int, seed: int) -> dict[str, Any]:
    """Writes the film and its ground truth, and returns that: as of the other films, with each object's number as
    `object`, and `occlusions`. The occluder, the last object of the clip, is not looked for."""
    clip = occluded_clip(seed, width / height)
    names = [f"{o.colour} {o.shape}" for o in clip.scene.objects[:-1]]

    def drawn() -> Iterator[Rendering]:
        for t in range(FRAMES):
            frame, index_map = clip.draw(float(t), height * width, supersample=2)
            yield Rendering(frame, index_map, ())

    video, maps = folder / "followed.mp4", []
    for rendering in write_video(video, drawn(), FPS, height, width):
        maps.append(rendering.index_map)
    truth = {
        **{"video": video.name, "classes": list(dict.fromkeys(names)), "fps": FPS, "width": width, "height": height},
        "occlusions": [
            {"object": k, "class": names[k - 1], "first": first, "last": last}
            for k, first, last in occlusions(_areas(np.stack(maps), len(names)))
        ],
        "frames": [_objects(index_map, names) for index_map in maps],
    }
    video.with_suffix(".json").write_text(json.dumps(truth) + "\n")
    return truth


def _objects(index_map: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """What can be seen in one frame."""
    height, width = index_map.shape
    found = []
    for k, name in enumerate(names, 1):
        encoded = rle.encode(np.asfortranarray(index_map == k, np.uint8))
        x, y, w, h = rle.toBbox(encoded).tolist()
        box = [x / width, y / height, (x + w) / width, (y + h) / height]
        mask = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
        if area := int(rle.area(encoded)):
            found.append({"class": name, "object": k, "bbox": box, "area": area, "mask": mask})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser("python -m demo.occlusion", description=__doc__, epilog=EXAMPLE)
    p.add_argument("--output", type=Path, required=True, help="folder to write")
    p.add_argument("--size", default="640x360", help="WIDTHxHEIGHT, both even (default: %(default)s)")
    p.add_argument("--seed", type=int, default=7, help="another number, another film (default: %(default)s)")
    a = p.parse_args(argv)
    width, height = (int(part) for part in a.size.split("x"))
    a.output.mkdir(parents=True, exist_ok=True)
    truth = record(a.output, height, width, a.seed)
    print(json.dumps({"video": str(a.output / truth["video"]), "occlusions": truth["occlusions"]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
