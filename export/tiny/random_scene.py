"""Random scenes: the distribution that the small checkpoint is trained on, evaluated on and shown with.

Training and validation use disjoint ranges of seeds, so that no training run can have seen a held-out scene.
"""

import math
from collections.abc import Iterator

import numpy as np

from export.tiny.scenes import ASPECTS, MAX_OBJECTS, SIZE_RANGE, Light, Scene, SceneObject
from export.tiny.shapes import COLOURS, SHAPES

FIRST_TRAINING_SEED = 1_000_000  # seeds below are for validation, tests and videos
SMALL_SHARE, SMALL_SIZE = 0.15, 0.08  # this share of the objects is drawn below this size, where lower resolutions hurt
MIN_CONTRAST = 60.0  # Euclidean distance in RGB between an object and the background behind it


def validation_seeds(count: int, first: int = 0) -> range:
    """`count` seeds of held-out scenes. Raises ValueError where they would run into the training seeds."""
    if first < 0 or first + count > FIRST_TRAINING_SEED:
        raise ValueError(
            f"validation seeds must lie in 0..{FIRST_TRAINING_SEED - 1}, got {first}..{first + count - 1}; ask for"
            " fewer"
        )
    return range(first, first + count)


def training_seeds(worker: int, workers: int, run: int = 0) -> Iterator[int]:
    """An endless stream of training seeds, disjoint between the workers of one run."""
    seed = FIRST_TRAINING_SEED + run * 100_000_000 + worker
    while True:
        yield seed
        seed += workers


def _random_light(rng: np.random.Generator, moving: bool) -> Light:
    brightness = rng.uniform(0.65, 1.2)
    red, green, blue = (brightness * rng.uniform(0.92, 1.08, 3)).tolist()
    slope = rng.uniform(0, 0.3) if rng.random() < 0.5 else 0.0
    direction = rng.uniform(0, 2 * math.pi)
    corners = [
        1.0 + slope * (math.cos(direction) * dx + math.sin(direction) * dy) / math.sqrt(2)
        for dy in (-1, 1)
        for dx in (-1, 1)
    ]
    ramp = (corners[0], corners[1], corners[2], corners[3])
    return Light((red, green, blue), ramp, float(rng.uniform(0, 0.12)) if moving else 0.0, float(rng.uniform(4, 10)))


def _random_grid(rng: np.random.Generator) -> np.ndarray:
    grid = rng.integers(0, 256, (rng.integers(1, 6), rng.integers(1, 6), 3)).astype(np.float32)
    grey = grid.mean(2, keepdims=True)
    grid = grey + (grid - grey) * rng.uniform(0.1, 0.7)  # less saturated than the objects
    return (grid * rng.uniform(0.35, 0.9)).astype(np.uint8)


def _behind(grid: np.ndarray, x: float, y: float) -> np.ndarray:
    rows, columns, _ = grid.shape
    return grid[min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)].astype(np.float32)


def _random_labels(rng: np.random.Generator, objects: list[SceneObject]) -> tuple[str, str]:
    # Repeating a class makes "all instances" mean something; sharing one of the two words makes the other one matter.
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(list(SHAPES)))
    if objects and rng.random() < 0.6:
        other = objects[rng.integers(len(objects))]
        kind = rng.random()
        colour = other.colour if kind < 0.7 else colour
        shape = other.shape if kind < 0.4 or kind >= 0.7 else shape
    return colour, shape


def _random_size(rng: np.random.Generator) -> float:
    """Log-uniform over SIZE_RANGE, with extra weight on the small end."""
    low, high = SIZE_RANGE
    high = SMALL_SIZE if rng.random() < SMALL_SHARE else high
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _random_place(
    rng: np.random.Generator, size: float, aspect: float, placed: list[SceneObject]
) -> tuple[float, float] | None:
    half_x, half_y = size / 2 / math.sqrt(aspect), size / 2 * math.sqrt(aspect)
    for _ in range(12):
        x, y = rng.uniform(half_x * 0.8, 1 - half_x * 0.8), rng.uniform(half_y * 0.8, 1 - half_y * 0.8)
        for o in placed:
            distance = math.hypot((x - o.x) * math.sqrt(aspect), (y - o.y) / math.sqrt(aspect))
            # Some overlap, but neither hides most of the other: centres stay apart by more than the larger radius.
            if distance < max(0.36 * (size + o.size), 0.55 * max(size, o.size)):
                break
        else:
            return x, y
    return None


def random_scene(seed: int, aspect: float | None = None, moving: bool = False, count: int | None = None) -> Scene:
    """The scene of a seed; the same arguments give the same scene.

    Args:
        seed: any integer >= 0; see `validation_seeds` and `training_seeds`.
        aspect: width / height of the frame that it is meant for; drawn from `ASPECTS` when None.
        moving: give the objects velocities (fractions of the frame a second) and spins, and let the light change.
        count: number of objects to place, 0 to MAX_OBJECTS (fewer where there is no room); drawn when None.
    """
    rng = np.random.default_rng(seed)
    aspect = float(ASPECTS[rng.integers(len(ASPECTS))]) if aspect is None else float(aspect)
    grid, light = _random_grid(rng), _random_light(rng, moving)
    if count is None:
        count = 0 if rng.random() < 0.03 else int(rng.integers(1, MAX_OBJECTS + 1))
    objects: list[SceneObject] = []
    for _ in range(count):
        size = _random_size(rng)
        place = _random_place(rng, size, aspect, objects)
        if place is None:
            continue
        for _ in range(8):
            colour, shape = _random_labels(rng, objects)
            rgb = np.clip(np.array(COLOURS[colour]) + rng.uniform(-22, 22, 3), 0, 255)
            if np.linalg.norm(rgb - _behind(grid, *place)) > MIN_CONTRAST:
                break
        motion = dict(zip(("vx", "vy", "spin"), rng.uniform(-0.16, 0.16, 3).tolist(), strict=True)) if moving else {}
        angle = float(rng.uniform(-math.pi, math.pi)) if rng.random() < 0.7 else 0.0
        rgb = tuple(int(v) for v in rgb)
        objects.append(SceneObject(colour, shape, rgb, size, float(place[0]), float(place[1]), angle, **motion))
    strength = float(rng.uniform(4, 30)) if rng.random() < 0.4 else 0.0
    stripes = (float(rng.uniform(0.01, 0.2)), float(rng.uniform(0, math.pi)), strength)
    blur = float(rng.uniform(0, 4)) if rng.random() < 0.4 else 0.0
    noise = float(rng.uniform(1, 15)) if rng.random() < 0.6 else 0.0
    return Scene(seed, aspect, grid, stripes, light, blur, noise, tuple(objects))
