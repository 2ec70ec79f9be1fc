"""One drawn frame with objects in it, for tests on the real server."""

from __future__ import annotations

from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import render

RENDERED = render(random_scene(validation_seeds(5)[3]), 252, 252)
FRAME = RENDERED.frame
CLASSES = tuple(sorted({f"{i.colour} {i.shape}" for i in RENDERED.instances}))
