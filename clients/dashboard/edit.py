"""Checks of the classes, exemplars and masked regions that a browser sets for a running camera.

What the server would refuse is refused here, where the user sees the reason: a camera with an invalid request would
detect nothing any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from clients.fleet.config import CameraConfig
from clients.fleet.request import Exemplar
from clients.video.motion import Motion
from ensemble.boxes import inside_frame
from ensemble.spec import MAX_CLASSES, MAX_PROMPT_CHARACTERS, Variant


class Refused(ValueError):  # noqa: N818 - the name says what happened
    """Classes, exemplars or regions that a camera cannot have; the message says what was expected."""


MOST_BOXES = Variant().max_boxes
"""The most exemplars of one class."""


def checked_classes(names: Sequence[str]) -> tuple[str, ...]:
    """The names without surrounding blanks. Raises Refused."""
    words = tuple(name.strip() for name in names)
    if not 1 <= len(words) <= MAX_CLASSES:
        raise Refused(f"expected 1 to {MAX_CLASSES} classes, got {len(words)}; a camera has to look for something")
    for word in words:
        if not 0 < len(word) <= MAX_PROMPT_CHARACTERS:
            raise Refused(f"expected a name of 1 to {MAX_PROMPT_CHARACTERS} characters, got {len(word)}")
    if twice := [word for word, count in Counter(words).items() if count > 1]:
        raise Refused(f"expected names that differ, got {twice[0]!r} more than once")
    return words


def checked_exemplars(config: CameraConfig, exemplars: Sequence[Exemplar]) -> tuple[Exemplar, ...]:
    """The exemplars, cut at the frame's edges, if a camera of that configuration can have them. Raises Refused."""
    if exemplars and config.track == "masks":
        raise Refused(
            f"expected no examples for {config.name}, whose objects the server's tracker follows (track: masks): it"
            " looks for names alone; give it other classes, or track: true in the configuration"
        )
    checked = []
    for exemplar in exemplars:
        if exemplar.name not in config.classes:
            raise Refused(f"expected one of the camera's classes ({', '.join(config.classes)}), got {exemplar.name!r}")
        try:
            box = inside_frame(exemplar.box)
        except ValueError as error:
            raise Refused(str(error)) from None
        checked.append(replace(exemplar, box=box))
    for name, count in Counter(e.name for e in exemplars).items():
        if count > MOST_BOXES:
            raise Refused(f"expected at most {MOST_BOXES} exemplars of a class, got {count} of {name!r}")
    return tuple(checked)


def checked_regions(config: CameraConfig, regions: Sequence[Sequence[tuple[float, float]]]) -> Motion:
    """The camera's motion gate with these polygons masked. Raises Refused."""
    if config.motion is None:
        raise Refused(
            f"expected a camera with a motion gate, got {config.name}, all frames of which are sent; write"
            " `motion: true` in the configuration"
        )
    for corners in regions:
        if len(corners) < 3:
            raise Refused(f"expected at least three corners of a region, got {len(corners)}")
        if not all(0 <= side <= 1 for corner in corners for side in corner):
            raise Refused(
                "expected corners as fractions of the frame from 0 to 1, got some outside; draw inside the frame"
            )
    try:
        return replace(config.motion, regions=tuple(tuple((x, y) for x, y in corners) for corners in regions))
    except ValueError as error:
        raise Refused(f"{error}; clear one first") from None
