"""The colours and shapes that scenes are drawn with, by name.

Shapes are outlines around the origin, so that one polygon fill draws each at any size and angle, in the image and in
the map of its objects.
"""

import math

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 175, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 185),
    "white": (240, 240, 240),
}


def _ngon(corners: int, radius: float, phase: float = 0.0) -> np.ndarray:
    angles = phase + np.arange(corners) * 2 * math.pi / corners
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], 1)


def _star() -> np.ndarray:
    points = np.empty((10, 2))
    points[0::2] = _ngon(5, 1.25)
    points[1::2] = _ngon(5, 0.52, math.pi / 5)
    return points


def _cross(length: float = 1.05, half: float = 0.37) -> np.ndarray:
    quarter = [(half, -length), (half, -half), (length, -half)]
    points = []
    for turn in range(4):
        c, s = round(math.cos(turn * math.pi / 2)), round(math.sin(turn * math.pi / 2))
        points += [(c * x - s * y, s * x + c * y) for x, y in quarter]
    return np.array(points)


def _ring(outer: float = 1.08, inner: float = 0.55) -> np.ndarray:
    # One outline that runs around the outside, crosses over and runs back around the hole.
    rim, hole = _ngon(40, outer), _ngon(40, inner)
    return np.concatenate([rim, rim[:1], hole[:1], hole[::-1]])


SHAPES: dict[str, np.ndarray] = {  # outlines around the origin, radius about 1, areas roughly equal
    "circle": _ngon(40, 1.0),
    "square": _ngon(4, 1.25, math.pi / 4),
    "triangle": _ngon(3, 1.3),
    "star": _star(),
    "cross": _cross(),
    "ring": _ring(),
}


def _polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


UNIT_AREA = {name: _polygon_area(points) for name, points in SHAPES.items()}
