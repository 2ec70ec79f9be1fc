"""Exemplar boxes: which ones are taken, and what of them lies inside the frame.

Detections of objects that the frame's edge cuts reach beyond it, and what the server returns it takes. Standard library
only: the server and the clients check boxes with this module.
"""

from __future__ import annotations

from collections.abc import Sequence

REACH = 0.5
"""A detection's centre lies in the frame and its sides are no longer than the frame's, so no box of this server reaches
farther beyond an edge, as a share of the frame. One that does was given in pixels."""


def inside_frame(box: Sequence[float]) -> tuple[float, float, float, float]:
    """The part of `box`, xyxy as fractions of the frame, that lies in it. Raises ValueError where that has no area, and
    where the box is no fraction of a frame."""
    x0, y0, x1, y1 = box
    if all(-REACH <= value <= 1 + REACH for value in box):  # NaN fails every comparison
        left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in box)
        if left < right and top < bottom:
            return left, top, right, bottom
    raise ValueError(
        "expected x0 < x1 and y0 < y1 in fractions of the frame, 0 to 1, and some of it inside the frame (what"
        f" reaches over an edge by up to {REACH:g} is cut off), got {[x0, y0, x1, y1]}"
    )
