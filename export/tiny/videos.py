"""Videos of moving shapes with exact ground truth: the scene of each camera as H.264, and a JSON file with the objects
of every frame.

The demonstration plays them; tests and measurements compare the server's answers with what was drawn.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from pycocotools import mask as rle

from export.tiny.prompts import named_by, phrase
from export.tiny.random_scene import random_scene
from export.tiny.scenes import Rendering, Scene, render
from export.tiny.shapes import COLOURS, SHAPES

MIN_OBJECTS, MAX_TRIES = 4, 50
EXAMPLE = "example: python -m export.tiny.videos --output build/videos --cameras 8 --frames 150"
FIRST_SEED = 500_000  # in the range of held-out seeds, behind those of the evaluation


def camera_scene(seed: int, camera: int, aspect: float) -> Scene:
    """The moving scene of the recording's camera number `camera`: at least MIN_OBJECTS objects of at least two
    classes."""
    for attempt in range(MAX_TRIES):
        number = FIRST_SEED + ((seed * 64 + camera) * MAX_TRIES + attempt) % 400_000
        scene = random_scene(number, aspect=aspect, moving=True)
        if len(scene.objects) >= MIN_OBJECTS and len({(o.colour, o.shape) for o in scene.objects}) >= 2:
            break
    return scene


def class_list(scene: Scene, seed: int) -> tuple[str, ...]:
    """Four different prompts for a scene: a colour with a shape, a shape, a colour with "object" (all present), and
    one that is absent."""
    rng = np.random.default_rng((4, seed, scene.seed))
    order = [scene.objects[k] for k in rng.permutation(len(scene.objects))]
    first, second, third = (order[k % len(order)] for k in range(3))
    classes = [phrase(rng, first.colour, first.shape, plain=True)]
    classes.append(phrase(rng, None, second.shape, plain=True))
    classes.append(phrase(rng, third.colour, "object", plain=True))
    there = {(o.colour, o.shape) for o in scene.objects}
    missing = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in there]
    colour, shape = missing[int(rng.integers(len(missing)))]
    return (*classes, phrase(rng, colour, shape, plain=True))


def ground_truth(rendering: Rendering, classes: Sequence[str]) -> list[dict]:
    """A record for each object and each class that names it: class, bbox (xyxy as fractions of the frame), area
    (pixels), mask (COCO RLE at frame size, counts as text)."""
    records = []
    for name in classes:
        for k in named_by(name, rendering.instances):
            instance = rendering.instances[k]
            encoded = rle.encode(np.asfortranarray(rendering.mask(instance), np.uint8))
            mask = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
            box = [round(v, 6) for v in instance.box]
            records.append({"class": name, "bbox": box, "area": instance.area, "mask": mask})
    return records


def drawn_frames(scene: Scene, frames: int, fps: int, height: int, width: int) -> Iterator[Rendering]:
    """The frames of a scene in motion, frame k at k / fps seconds."""
    for k in range(frames):
        yield render(scene, height, width, t=k / fps, supersample=2)


def write_video(path: Path, frames: Iterator[Rendering], fps: int, height: int, width: int) -> Iterator[Rendering]:
    """Encodes frames as they come (H.264, yuv420p, one packet a frame in order) and yields each. The same frames give
    the same file."""
    with av.open(str(path), "w") as container:
        # One thread: the same bytes every time.
        options = {"crf": "16", "preset": "veryfast", "threads": "1", "bf": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for k, rendering in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rendering.frame), format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
            yield rendering
        container.mux(stream.encode())


def record_camera(folder: Path, camera: int, frames: int, fps: int, height: int, width: int, seed: int) -> dict:
    """Writes `camera_<n>.mp4` and `camera_<n>.json` into `folder`; returns what the JSON file says, without the frames.

    Raises ValueError for odd sizes, which yuv420p cannot hold.
    """
    if height % 2 or width % 2:
        raise ValueError(
            f"width and height must be even, got {width}x{height}; try {width - width % 2}x{height - height % 2}"
        )
    scene = camera_scene(seed, camera, width / height)
    classes = class_list(scene, seed)
    video = folder / f"camera_{camera + 1}.mp4"
    drawn = write_video(video, drawn_frames(scene, frames, fps, height, width), fps, height, width)
    head = {"video": video.name, "classes": list(classes), "fps": fps, "width": width, "height": height}
    records = [ground_truth(rendering, classes) for rendering in drawn]
    video.with_suffix(".json").write_text(json.dumps({**head, "frames": records}) + "\n")
    return head


def main(argv: Sequence[str] | None = None) -> dict:
    """The command line. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser("python -m export.tiny.videos", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    for name, default, what in (
        ("cameras", 8, "one video each"),
        ("frames", 150, "of each camera"),
        ("fps", 15, "frames a second"),
        ("seed", 0, "another number, other scenes"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what}; default %(default)s")
    parser.add_argument("--size", default="640x360", help="width x height, both even; default %(default)s")
    options = parser.parse_args(argv)
    try:
        width, height = (int(part) for part in options.size.lower().split("x"))
    except ValueError:
        parser.error(f'--size must look like "640x360", got "{options.size}"')
    options.output.mkdir(parents=True, exist_ok=True)
    cameras = []
    for camera in range(options.cameras):
        print(f"\rcamera {camera + 1}/{options.cameras}", end="", file=sys.stderr)
        cameras.append(record_camera(options.output, camera, options.frames, options.fps, height, width, options.seed))
    print(file=sys.stderr)
    summary = {"output": str(options.output), "frames": options.frames, "cameras": cameras}
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
