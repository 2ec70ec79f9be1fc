"""Scenes of coloured shapes, and their images with exact ground truth.

A `Scene` is a frozen record of a background, a light and a few shapes that may move; `render` draws it at any size and
any moment, together with a map of which pixel belongs to which object. Training, evaluation and the demonstration
videos share it.

Positions are fractions of the frame's width and height, sizes are fractions of sqrt(width * height), times are seconds.
Shapes are undistorted in the frame; the stretch to the network's square input comes later, as it does in serving.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from export.tiny.shapes import SHAPES, UNIT_AREA

SIZE_RANGE = (0.05, 0.42)  # diameter over sqrt(width * height)
ASPECTS = (16 / 9, 16 / 9, 4 / 3, 3 / 2, 1.0, 3 / 4, 9 / 16)  # width / height; 16 : 9 is drawn twice as often
MAX_OBJECTS = 8
MIN_VISIBLE_FRACTION = 0.2  # an object of which less can be seen could not be named, so it is not ground truth
MIN_VISIBLE_PIXELS = 6
NOISE_TILE = 512

Box = tuple[float, float, float, float]  # xyxy, fractions of the frame


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape. `x`, `y` fractions of the frame at t = 0, `vx`, `vy` fractions a second, `size` diameter over sqrt(W *
    H), `angle` radians, `spin` radians a second."""

    colour: str
    shape: str
    rgb: tuple[int, int, int]
    size: float
    x: float
    y: float
    angle: float
    vx: float = 0.0
    vy: float = 0.0
    spin: float = 0.0


@dataclass(frozen=True, slots=True)
class Light:
    """`gain` per channel, `ramp` relative brightness at the frame's four corners, `flicker` amplitude and `period` in
    seconds of a slow change of brightness."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ramp: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    flicker: float = 0.0
    period: float = 8.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a frame is made of; objects later in the tuple lie in front.

    `grid` is a coarse uint8 RGB image [h, w, 3] that is enlarged smoothly to become the background, `stripes` (period
    as a fraction of the diagonal, angle, strength in grey levels) a texture on it, `blur` a radius in thousandths of
    sqrt(W * H), `noise` a standard deviation in grey levels.
    """

    seed: int
    aspect: float
    grid: np.ndarray = field(repr=False)
    stripes: tuple[float, float, float]
    light: Light
    blur: float
    noise: float
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object that can be seen: its labels, the box around its visible part (xyxy, fractions of the frame), visible
    area in pixels, visible fraction, and `index`, its value in `Rendering.index_map`."""

    colour: str
    shape: str
    box: Box
    area: int
    visible: float
    index: int


@dataclass(frozen=True, slots=True)
class Rendering:
    """`frame` uint8 RGB [H, W, 3]; `index_map` uint8 [H, W], 0 background, k + 1 the k-th object of the scene;
    `instances` those objects that can be seen."""

    frame: np.ndarray
    index_map: np.ndarray
    instances: tuple[Instance, ...]

    def mask(self, instance: Instance) -> np.ndarray:
        """Visible pixels of one instance, bool [H, W]."""
        return self.index_map == instance.index


def _bounce(start: float, speed: float, t: float, margin: float) -> float:
    """Position at time t of a point that moves between two walls: a triangle wave over [margin, 1 - margin]."""
    span = max(1.0 - 2 * margin, 1e-6)
    phase = (start - margin + speed * t) % (2 * span)
    return margin + (phase if phase <= span else 2 * span - phase)


def at_time(scene: Scene, t: float) -> Scene:
    """The scene `t` seconds later: objects have moved, bounced and turned, the brightness has changed."""
    if t == 0.0:
        return scene
    moved = []
    for o in scene.objects:
        half_x, half_y = o.size / 2 / math.sqrt(scene.aspect), o.size / 2 * math.sqrt(scene.aspect)
        x, y = _bounce(o.x, o.vx, t, half_x), _bounce(o.y, o.vy, t, half_y)
        moved.append(replace(o, x=x, y=y, angle=o.angle + o.spin * t))
    swing = 1.0 + scene.light.flicker * math.sin(2 * math.pi * t / scene.light.period)
    red, green, blue = (g * swing for g in scene.light.gain)
    return replace(scene, objects=tuple(moved), light=replace(scene.light, gain=(red, green, blue)))


def frame_size(aspect: float, pixels: float) -> tuple[int, int]:
    """(height, width), even numbers, of a frame of about `pixels` pixels with the given width / height."""
    height = max(2, 2 * round(math.sqrt(pixels / aspect) / 2))
    return height, max(2, 2 * round(math.sqrt(pixels * aspect) / 2))


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    return np.random.default_rng(20261121).standard_normal((NOISE_TILE, NOISE_TILE, 3), dtype=np.float32)


@lru_cache(maxsize=32)
def _noise_levels(sigma: int) -> np.ndarray:
    return np.clip(_noise_tile() * sigma + 128, 0, 255).astype(np.uint8)


def _noise(scene: Scene, size: tuple[int, int], t: float) -> Image.Image:
    # New noise would cost more than everything else: a fixed tile is shifted by a number that depends on scene and
    # moment.
    key = (scene.seed * 7919 + round(t * 1000) * 104729) & 0xFFFFFFFF
    rows = (np.arange(size[1]) + key % NOISE_TILE) % NOISE_TILE
    columns = (np.arange(size[0]) + (key // NOISE_TILE) % NOISE_TILE) % NOISE_TILE
    return Image.fromarray(_noise_levels(max(1, round(scene.noise)))[rows][:, columns])


def _background(scene: Scene, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(scene.grid).resize(size, Image.Resampling.BICUBIC)
    period, angle, strength = scene.stripes
    if strength >= 1:
        width, height = size
        step = 2 * math.pi / (period * math.hypot(width, height))
        u = (np.arange(width, dtype=np.float32) * math.cos(angle) * step)[None]
        v = (np.arange(height, dtype=np.float32) * math.sin(angle) * step)[:, None]
        wave = np.sin(u) * np.cos(v) + np.cos(u) * np.sin(v)  # sin(u + v), with fewer sines
        wave = (128 + strength * wave).astype(np.uint8)
        image = ImageChops.add(image, Image.merge("RGB", [Image.fromarray(wave)] * 3), 1.0, -128)
    return image


def _lit(image: Image.Image, light: Light) -> Image.Image:
    corners = np.clip(np.outer(light.ramp, light.gain) * 128, 0, 255).astype(np.uint8).reshape(2, 2, 3)
    # Multiplying by a byte can only darken; the factor 2 below (128 stands for 1.0) lets the light brighten too.
    ramp = Image.fromarray(corners).resize(image.size, Image.Resampling.BILINEAR)
    half = ImageChops.multiply(image, ramp)
    return ImageChops.add(half, half)


def outline(o: SceneObject, size: tuple[int, int]) -> np.ndarray:
    """The polygon [points, 2] of an object in pixels of a frame of `size` (width, height)."""
    width, height = size
    radius = o.size / 2 * math.sqrt(width * height)
    c, s = math.cos(o.angle) * radius, math.sin(o.angle) * radius
    return SHAPES[o.shape] @ np.array([[c, s], [-s, c]]) + (o.x * width - 0.5, o.y * height - 0.5)


def render(scene: Scene, height: int, width: int, t: float = 0.0, supersample: int = 1) -> Rendering:
    """Draws the scene at `t` seconds.

    `supersample` 2 draws at twice the size and averages, which smooths edges as a camera does; 1 is for frames that are
    reduced afterwards anyway. The same scene, size and moment give the same bytes. Raises ValueError for a frame of
    less than 2 x 2 pixels.
    """
    if height < 2 or width < 2:
        raise ValueError(f"a frame must be at least 2x2 pixels, got {width}x{height}; give a larger size")
    now = at_time(scene, t)
    size = (width * supersample, height * supersample)
    image = _background(now, size)
    labels = Image.new("L", size)
    draw, draw_label = ImageDraw.Draw(image), ImageDraw.Draw(labels)
    for index, o in enumerate(now.objects, 1):
        points = [tuple(p) for p in outline(o, size).tolist()]
        draw.polygon(points, fill=o.rgb)
        draw_label.polygon(points, fill=index)
    image = image.reduce(supersample) if supersample > 1 else image
    radius = now.blur * 1e-3 * math.sqrt(width * height)
    if radius > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    image = _lit(image, now.light)
    if now.noise >= 1:
        image = ImageChops.add(image, _noise(now, (width, height), t), 1.0, -128)
    index_map = np.ascontiguousarray(
        np.asarray(labels)[supersample // 2 :: supersample, supersample // 2 :: supersample]
    )
    return Rendering(np.asarray(image), index_map, _instances(now, index_map))


def _instances(scene: Scene, index_map: np.ndarray) -> tuple[Instance, ...]:
    height, width = index_map.shape
    found = []
    for index, o in enumerate(scene.objects, 1):
        points = outline(o, (width, height))
        x0, y0 = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, (width, height))
        x1, y1 = np.clip(np.ceil(points.max(0)).astype(int) + 2, 0, (width, height))
        part = index_map[y0:y1, x0:x1] == index
        columns, rows = np.flatnonzero(part.any(0)), np.flatnonzero(part.any(1))
        area = int(part.sum())
        full = UNIT_AREA[o.shape] * (o.size / 2) ** 2 * width * height
        if area < MIN_VISIBLE_PIXELS or area < MIN_VISIBLE_FRACTION * full:
            continue
        box = (
            float(x0 + columns[0]) / width,
            float(y0 + rows[0]) / height,
            float(x0 + columns[-1] + 1) / width,
            float(y0 + rows[-1] + 1) / height,
        )
        found.append(Instance(o.colour, o.shape, box, area, min(1.0, area / full), index))
    return tuple(found)
