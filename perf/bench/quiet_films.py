"""Films of cameras that look at nothing most of the time, drawn with exact ground truth: a few objects that stay, now
and then one that comes, and what else changes in a camera's picture without anything moving.

A film is an H.264 file, of `SIZE` unless told otherwise, at `FPS` frames a second. What happens: objects cross the
picture, come, stay and leave, appear and vanish. What does not: noise, compression, light, a lamp, a pole in the wind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from clients.video.motion import Motion
from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import Instance, Rendering, Scene, SceneObject, render

SIZE = (720, 1280)
FPS = 10
MARGIN = 8
"""Pixels that are drawn beyond each side, into which a shaking camera looks."""
QUIET_S = 3.0
"""Nothing happens before."""
RESTING = 3
"""Objects that are always there."""
EVENT_S = (0.8, 1.8)
"""How long an object takes across the picture, at least and at most."""
COMING = (("red", "circle"), ("blue", "square"))
COLOURS = {"red": (220, 40, 40), "blue": (50, 70, 220)}


@dataclass(frozen=True, slots=True)
class Trouble:
    """What changes in the picture although nothing moves: `noise` in grey levels, `crf` of H.264, `light` the part by
    which brightness swings once in 40 s, `lamp_s` the seconds from one switch of a lamp to the next, `shake` pixels."""

    noise: float = 2.0
    crf: int = 23
    light: float = 0.0
    lamp_s: float = math.inf
    shake: float = 0.0


TROUBLES = {
    "quiet": Trouble(),
    "noise": Trouble(noise=8.0),
    "compression": Trouble(noise=3.0, crf=34),
    "slow light": Trouble(light=0.25),
    "lamp": Trouble(lamp_s=10.0),
    "shaking pole": Trouble(shake=3.0),
    "all of it": Trouble(noise=4.0, crf=28, light=0.15, lamp_s=20.0, shake=2.0),
}


@dataclass(frozen=True, slots=True)
class Passage:
    """An object that comes at `start` (seconds), moves for `moving` seconds, and in the middle stays for `staying`;
    where `moving` is 0 it appears and vanishes."""

    what: SceneObject
    start: float
    moving: float
    staying: float

    def at(self, t: float) -> SceneObject | None:
        """The object at `t` seconds; None where it is not there."""
        passed = t - self.start
        if not 0 <= passed <= self.moving + self.staying:
            return None
        if not self.moving:
            return self.what
        half = self.moving / 2
        moved = min(passed, half) + max(passed - half - self.staying, 0.0)
        return replace(self.what, x=-0.1 + 1.2 * moved / self.moving)


@dataclass(frozen=True, slots=True)
class QuietFilm:
    """A film, the names of what is in it, the instances in each frame, and for each whether something moves in it."""

    path: Path
    classes: tuple[str, ...]
    instances: tuple[tuple[Instance, ...], ...]
    moving: tuple[bool, ...]

    @property
    def firsts(self) -> list[int]:
        """The first frame of each event: of each movement after at least half a second without one."""
        gap = FPS // 2
        return [k for k, one in enumerate(self.moving) if one and not any(self.moving[max(0, k - gap) : k])]


def passages(rng: np.random.Generator, seconds: float, activity: float) -> list[Passage]:
    """Objects that come, so that about `activity` of the time something moves."""
    count = max(1, round(seconds * activity / np.mean(EVENT_S)))
    room = (seconds - QUIET_S) / count
    found = []
    for i in range(count):
        colour, shape = COMING[i % len(COMING)]
        size, y = float(rng.uniform(0.07, 0.2)), float(rng.uniform(0.2, 0.8))
        what = SceneObject(colour, shape, COLOURS[colour], size, float(rng.uniform(0.2, 0.8)), y, 0.0)
        moving = float(rng.uniform(*EVENT_S)) if i % 3 < 2 else 0.0
        staying = 0.0 if i % 3 == 0 else min(3.0, room / 3)
        found.append(Passage(what, QUIET_S + room * (i + float(rng.uniform(0.0, 0.2))), moving, staying))
    return found


def draw(
    path: Path, trouble: Trouble, seconds: float, activity: float, seed: int, size: tuple[int, int] = SIZE
) -> QuietFilm:
    """Writes a film of that height and width; the same arguments give the same one."""
    rng = np.random.default_rng(seed)
    (number,) = validation_seeds(1, first=700_000 + seed)
    scene = replace(random_scene(number, size[1] / size[0], count=RESTING), noise=0.0)
    coming = passages(rng, seconds, activity)
    instances, moving, before = [], [], frozenset[SceneObject]()
    large = Motion().smallest * size[0] * size[1]
    with av.open(str(path), "w") as container:
        options = {"crf": str(trouble.crf), "preset": "veryfast", "bf": "0"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = 2 * FPS
        for picture, visible, objects in pictures(scene, coming, round(seconds * FPS), rng, trouble, size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            shown = frozenset(objects[i.index - 1] for i in visible if i.index > len(scene.objects) and i.area >= large)
            instances.append(visible)
            moving.append(shown != before)
            before = shown
        container.mux(stream.encode(None))
    names = dict.fromkeys(f"{o.colour} {o.shape}" for o in (*scene.objects, *(p.what for p in coming)))
    return QuietFilm(path, tuple(names), tuple(instances), tuple(moving))


def pictures(
    scene: Scene,
    coming: list[Passage],
    frames: int,
    rng: np.random.Generator,
    trouble: Trouble,
    size: tuple[int, int],
) -> Iterator[tuple[NDArray[np.uint8], tuple[Instance, ...], tuple[SceneObject, ...]]]:
    """Each frame, uint8 [H,W,3], what can be seen in it, and the objects that the instances' `index` counts."""
    height, width = size
    large = (height + 2 * MARGIN, width + 2 * MARGIN)
    tile = np.round(rng.normal(0, trouble.noise, (height + 64, width + 64, 3))).astype(np.float32)
    lamp = 1.0 + 0.5 * np.clip(np.linspace(-0.6, 1, width, dtype=np.float32), 0, 1)[:, None]
    clean, objects = render(scene, *large), scene.objects
    for k in range(frames):
        t = k / FPS
        now = (*scene.objects, *(one for passage in coming if (one := passage.at(t)) is not None))
        if now != objects:
            clean, objects = render(replace(scene, objects=now), *large), now
        wind = trouble.shake * np.array([math.sin(2 * math.pi * 1.3 * t), math.sin(2 * math.pi * 0.9 * t + 1)])
        down, right = (MARGIN + np.round(wind)).astype(int)
        part = slice(down, down + height), slice(right, right + width)
        gain = 1 + trouble.light * math.sin(2 * math.pi * t / 40)
        picture = clean.frame[part] * np.float32(gain)
        if t // trouble.lamp_s % 2 == 1:
            picture *= lamp
        y, x = rng.integers(0, 64, 2)
        picture += tile[y : y + height, x : x + width]
        yield np.clip(picture, 0, 255).astype(np.uint8), within(clean, part), objects


def within(clean: Rendering, part: tuple[slice, slice]) -> tuple[Instance, ...]:
    """The instances as a part of the drawing shows them."""
    found = []
    for instance in clean.instances:
        mask = clean.index_map[part] == instance.index
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            (height, width), area = mask.shape, int(np.count_nonzero(mask))
            left, top = float(columns[0]) / width, float(rows[0]) / height
            box = (left, top, float(columns[-1] + 1) / width, float(rows[-1] + 1) / height)
            found.append(replace(instance, box=box, area=area))
    return tuple(found)
