"""Drawn clips with exact ground truth: what a tracker has to survive, as endless training batches and held-out videos.

Objects run on ellipses, seen through a camera that may sway. From that follow the hard cases: objects leave the frame
and come back, a large occluder sweeps across, twins of one class cross, sizes change, and frames are missing. Training
and held-out clips use disjoint ranges of seeds, those of `random_scene`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from export.tiny.dataset import to_square
from export.tiny.random_scene import random_scene
from export.tiny.scenes import Light, Scene, SceneObject, frame_size, render

KINDS = ("plain", "leave", "occluder", "twins", "camera")
SIZES = (0.1, 0.36)  # diameters of tracked objects over sqrt(width * height)
OCCLUDER = (0.4, 0.6)
PEAK_SPEED = 0.05  # fraction of the frame's side a frame; faster objects leave their own place within two frames
LEAST_SEEN = 24  # pixels of an object in a map at 8p, so that it is tracked from there on
TELLING = 0.75  # share of the training clips in which some object is hidden for a time
HIDDEN = 0.5  # an object counts as hidden while less than this share of what else is seen of it can be seen
MARGIN = 1.25  # side of the canvas over that of the frame where the camera sways


@dataclass(frozen=True, slots=True)
class Orbit:
    """An object's way: centre (fractions of the canvas), reach in x and y, `period` in frames (negative: the other way
    round), phase in turns, and how much its size swings."""

    centre: tuple[float, float]
    reach: tuple[float, float]
    period: float
    phase: float
    swell: float = 0.0

    def at(self, o: SceneObject, frame: float) -> SceneObject:
        """The object at a moment in frames."""
        turn = 2 * math.pi * (frame / self.period + self.phase)
        x = self.centre[0] + self.reach[0] * math.cos(turn)
        y = self.centre[1] + self.reach[1] * math.sin(turn)
        size = o.size * math.exp(self.swell * math.sin(0.7 * turn))
        return replace(o, x=x, y=y, size=size, angle=o.angle + o.spin * frame)


@dataclass(frozen=True, slots=True)
class Clip:
    """A scene in motion: object k of `scene.objects` runs on `orbits[k]`; the camera sways on `camera` (None: stands
    still); `flicker` is the light's, with its period in frames."""

    scene: Scene
    kind: str
    orbits: tuple[Orbit, ...]
    camera: Orbit | None

    def draw(self, frame: float, pixels: float, supersample: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The frame uint8 RGB [H, W, 3] of about `pixels` pixels, and its map uint8 [H, W]: 0 background, k + 1 the
        k-th object."""
        objects = tuple(orbit.at(o, frame) for orbit, o in zip(self.orbits, self.scene.objects, strict=True))
        light = self.scene.light
        swing = 1 + light.flicker * math.sin(2 * math.pi * frame / (15 * light.period))
        red, green, blue = (gain * swing for gain in light.gain)
        now = replace(
            self.scene,
            objects=objects,
            light=Light((red, green, blue), light.ramp),
            seed=self.scene.seed + 31 * round(frame),  # other noise on each frame
        )
        height, width = frame_size(self.scene.aspect, pixels)
        if self.camera is None:
            drawn = render(now, height, width, supersample=supersample)
            return drawn.frame, drawn.index_map
        drawn = render(now, round(height * MARGIN), round(width * MARGIN), supersample=supersample)
        turn = 2 * math.pi * (frame / self.camera.period + self.camera.phase)
        room = drawn.index_map.shape[0] - height, drawn.index_map.shape[1] - width
        top = round(room[0] * (0.5 + self.camera.reach[1] * math.sin(turn)))
        left = round(room[1] * (0.5 + self.camera.reach[0] * math.cos(0.8 * turn)))
        part = slice(top, top + height), slice(left, left + width)
        return drawn.frame[part], drawn.index_map[part]


def random_clip(seed: int, kind: str | None = None, aspect: float | None = None) -> Clip:
    """The clip of a seed; the same arguments give the same clip. `kind` is one of KINDS, drawn where None. Raises
    ValueError for another kind."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f'expected a kind of clip out of {", ".join(KINDS)}, got "{kind}"')
    rng = np.random.default_rng((6, seed))
    kind = kind or str(rng.choice(KINDS, p=(0.15, 0.2, 0.25, 0.25, 0.15)))
    scene = random_scene(seed, aspect=aspect, count=int(rng.integers(2, 6)))
    light = replace(scene.light, flicker=float(rng.uniform(0, 0.12)))
    objects, orbits = [], []
    for o in scene.objects:
        size = float(np.clip(o.size, SIZES[0] * rng.uniform(1, 1.3), SIZES[1]))
        objects.append(replace(o, size=size, spin=float(rng.uniform(-0.08, 0.08))))
        orbits.append(_orbit(rng, (o.x, o.y), far=kind == "leave"))
    if kind == "twins" or (kind != "occluder" and rng.random() < 0.3):
        twin, first = _twins(rng, objects)
        objects.append(twin)
        orbits[first], other = _crossing(rng)
        orbits.append(other)
    order = rng.permutation(len(objects))  # a twin is as often in front as behind
    objects, orbits = [objects[k] for k in order], [orbits[k] for k in order]
    if kind == "occluder" or rng.random() < 0.2:
        objects.append(_occluder(rng))
        orbits.append(_sweep(rng))
    camera = None
    if kind == "camera" or rng.random() < 0.2:
        reach = (float(rng.uniform(0.2, 0.5)), float(rng.uniform(0.2, 0.5)))
        camera = Orbit((0, 0), reach, float(rng.uniform(25, 90)), float(rng.random()))
    return Clip(replace(scene, objects=tuple(objects), light=light), kind, tuple(orbits), camera)


def _period(rng: np.random.Generator, reach: tuple[float, float]) -> float:
    shortest = max(2 * math.pi * max(reach) / PEAK_SPEED, 10.0)
    return float(rng.choice((-1, 1)) * shortest * math.exp(rng.uniform(0, 1.6)))


def _orbit(rng: np.random.Generator, start: tuple[float, float], far: bool) -> Orbit:
    """A way that begins at `start`; `far` ones lead out of the frame."""
    low, high = (0.3, 0.55) if far and rng.random() < 0.7 else (0.02, 0.25)
    reach = (float(rng.uniform(low, high)), float(rng.uniform(low, high)))
    phase = rng.random()
    centre = (
        start[0] - reach[0] * math.cos(2 * math.pi * phase),
        start[1] - reach[1] * math.sin(2 * math.pi * phase),
    )
    return Orbit(centre, reach, _period(rng, reach), float(phase), float(rng.uniform(0, 0.35)))


def _twins(rng: np.random.Generator, objects: list[SceneObject]) -> tuple[SceneObject, int]:
    """Another object of the class of one of `objects`, and that one's number."""
    first = int(rng.integers(len(objects)))
    o = objects[first]
    near = np.clip(np.array(o.rgb) + rng.uniform(-15, 15, 3), 0, 255).astype(int).tolist()
    size = float(np.clip(o.size * rng.uniform(0.85, 1.15), *SIZES))
    spin = float(rng.uniform(-0.08, 0.08))
    return replace(o, rgb=(near[0], near[1], near[2]), size=size, angle=float(rng.uniform(-3, 3)), spin=spin), first


def _crossing(rng: np.random.Generator) -> tuple[Orbit, Orbit]:
    """Two ways that meet near the middle of each half turn."""
    centre = (float(rng.uniform(0.35, 0.65)), float(rng.uniform(0.35, 0.65)))
    wide, flat = float(rng.uniform(0.15, 0.35)), float(rng.uniform(0.0, 0.08))
    reach = (wide, flat) if rng.random() < 0.5 else (flat, wide)
    phase, period = float(rng.random()), _period(rng, reach)
    apart = (centre[0] + float(rng.uniform(-0.06, 0.06)), centre[1] + float(rng.uniform(-0.06, 0.06)))
    return Orbit(centre, reach, period, phase, 0.1), Orbit(apart, reach, period, phase + 0.5, 0.1)


def _occluder(rng: np.random.Generator) -> SceneObject:
    rgb = [int(v) for v in rng.integers(0, 256, 3)]
    shape, size = str(rng.choice(("square", "circle", "cross"))), float(rng.uniform(*OCCLUDER))
    return SceneObject("grey", shape, (rgb[0], rgb[1], rgb[2]), size, 0.5, 0.5, float(rng.uniform(-3, 3)))


def _sweep(rng: np.random.Generator) -> Orbit:
    """A way across the whole frame and back."""
    long, short = float(rng.uniform(0.6, 0.9)), float(rng.uniform(0.0, 0.2))
    reach = (long, short) if rng.random() < 0.7 else (short, long)
    return Orbit((0.5, 0.5), reach, _period(rng, reach), float(rng.random()))


@dataclass(slots=True)
class ClipBatch:
    """B clips of T frames, K objects each, at one resolution R, m = 8R/14: frames uint8 [B, T, R, R, 3], maps uint8
    [B, T, m, m], objects uint8 [B, K] the tracked objects' values in the maps (0: fewer than K)."""

    frames: np.ndarray
    maps: np.ndarray
    objects: np.ndarray


def map_to_square(index_map: np.ndarray, side: int) -> np.ndarray:
    """A map of objects uint8 [H, W] to [side, side], nearest."""
    return np.asarray(Image.fromarray(index_map).resize((side, side), Image.Resampling.NEAREST))


def _telling_moment(rng: np.random.Generator, clip: Clip, span: float) -> float:
    """A moment with objects to track; in most of the clips, if one is found, much of an object that is seen then or
    later is hidden at another time within `span`."""
    change = rng.random() < TELLING
    for _ in range(8):
        moment = rng.uniform(0, 90)
        maps = [clip.draw(moment + later, 48.0**2)[1] for later in (0, span / 2, span)]
        areas = np.stack([np.bincount(seen.ravel(), minlength=len(clip.scene.objects) + 1)[1:] for seen in maps])
        hidden = areas.min(0) < HIDDEN * areas.max(0)
        if (areas[0] > 0).sum() >= 2 and (not change or hidden.any()):
            break
    return float(moment)


def draw_clips(seeds: list[int], frames: int, resolution: int, objects: int) -> ClipBatch:
    """One clip for each seed, from a random moment on, with every frame, every second or every third."""
    side = 8 * resolution // 14
    pixels = np.empty((len(seeds), frames, resolution, resolution, 3), np.uint8)
    maps = np.empty((len(seeds), frames, side, side), np.uint8)
    chosen = np.zeros((len(seeds), objects), np.uint8)
    for b, seed in enumerate(seeds):
        rng = np.random.default_rng((7, seed))
        clip = random_clip(seed)
        moment, size = _telling_moment(rng, clip, 2 * frames), (resolution * rng.uniform(1.0, 1.6)) ** 2
        for t in range(frames):
            frame, index_map = clip.draw(moment, size)
            pixels[b, t] = to_square(frame, resolution)
            maps[b, t] = map_to_square(index_map, side)
            moment += int(rng.choice((1, 2, 3), p=(0.5, 0.3, 0.2)))
        chosen[b] = picked(rng, maps[b, 0], objects)
    return ClipBatch(pixels, maps, chosen)


def picked(rng: np.random.Generator, index_map: np.ndarray, objects: int) -> np.ndarray:
    """Up to `objects` values uint8 [objects] of what a map uint8 [m, m] shows enough of; 0 where it has fewer."""
    areas = np.bincount(index_map.ravel(), minlength=2)
    seen = rng.permutation(np.flatnonzero(areas[1:] >= LEAST_SEEN) + 1)[:objects]
    return np.pad(seen, (0, objects - len(seen))).astype(np.uint8)


def reversed_clips(batch: ClipBatch, rng: np.random.Generator) -> ClipBatch:
    """The same clips from their ends to their beginnings, in a mirror; other clips to a tracker."""
    frames, maps = (np.ascontiguousarray(part[:, ::-1, :, ::-1]) for part in (batch.frames, batch.maps))
    chosen = np.stack([picked(rng, clip[0], batch.objects.shape[1]) for clip in maps])
    return ClipBatch(frames, maps, chosen)
