"""Drawing of detections: translucent masks with a clear edge, boxes, and a tag with name, track and score.

The image may have any size, since boxes and masks are fractions of the frame. Line and letter sizes follow the image's
height, so that a tag is as legible in a mosaic as in 1080p. Pillow draws with its built-in font: the same on every
machine.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clients.detections import Detections

Colour = tuple[int, int, int]
PALETTE_SIZE = 18
MASK_OPACITY = 0.26
INK_DARK, INK_LIGHT = (16, 18, 24), (255, 255, 255)


@lru_cache
def palette() -> tuple[Colour, ...]:
    """Bright RGB colours, evenly spaced in hue, every other one darker so that neighbours differ in lightness too."""
    colours = []
    for i in range(PALETTE_SIZE):
        red, green, blue = colorsys.hls_to_rgb(i / PALETTE_SIZE, 0.50 if i % 2 else 0.62, 0.92)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)


def colour_map(labels: Sequence[str]) -> dict[str, Colour]:
    """A colour for each label. It is derived from the label's spelling, so it is the same in every image; a later label
    whose colour is taken gets the one farthest from those in use.
    """
    colours: dict[str, Colour] = {}
    taken: list[int] = []
    for label in dict.fromkeys(labels):
        slot = zlib.crc32(label.encode()) % PALETTE_SIZE
        if any(_apart(slot, other) < 2 for other in taken) and len(taken) < PALETTE_SIZE:
            slot = max(range(PALETTE_SIZE), key=lambda s: min(_apart(s, other) for other in taken))
        taken.append(slot)
        colours[label] = palette()[slot]
    return colours


def _apart(a: int, b: int) -> int:
    """Steps between two slots around the colour wheel."""
    return min((a - b) % PALETTE_SIZE, (b - a) % PALETTE_SIZE)


def ink_on(colour: Colour) -> Colour:
    """Dark or light letters, whichever is easier to read on that colour (relative luminance, ITU-R BT.709 weights)."""
    return INK_DARK if np.dot(colour, (0.2126, 0.7152, 0.0722)) > 130 else INK_LIGHT


@lru_cache
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font, `size` in pixels."""
    return ImageFont.load_default(size)


def annotate(
    rgb: NDArray[np.uint8],
    detections: Detections,
    *,
    tracks: Sequence[int] = (),
    colours: Mapping[str, Colour] | None = None,
    labels: bool = True,
    masks: bool = True,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """A copy of `rgb`, uint8 [H,W,3], with the detections drawn on it, the highest score on top.

    `tracks` [D] are ids, -1 for none, or empty if there are no tracks; `colours` maps class names to RGB, by default
    `colour_map` of the request's classes; `scale` enlarges lines and letters.
    """
    height, width = rgb.shape[:2]
    colours = colours or colour_map(detections.classes)
    each = [colours[label] for label in detections.labels]
    canvas = rgb.copy()
    if masks and len(detections) and detections.has_masks:
        for mask, colour in reversed(list(zip(detections.masks_at(height, width), each, strict=True))):
            _tint(canvas, mask, colour)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    line = max(2, round(height * scale / 200))
    corners = np.rint(detections.boxes * [width - 1, height - 1, width - 1, height - 1]).astype(int).tolist()
    for box, colour in reversed(list(zip(corners, each, strict=True))):
        draw.rectangle(_ordered(box), outline=colour, width=line)
    if labels:
        letters = font(max(11.0, height * scale / 24))
        tags: list[tuple[float, ...]] = []
        for i, (box, colour) in enumerate(zip(corners, each, strict=True)):
            track = f" #{tracks[i]}" if len(tracks) and tracks[i] >= 0 else ""
            text = f"{detections.labels[i]}{track} {detections.scores[i]:.2f}"
            tags.append(_tag(draw, text, box, colour, letters, (width, height), tags))
    return np.asarray(image)


def _ordered(box: Sequence[int]) -> list[int]:
    """The box with the smaller coordinates first, as Pillow requires."""
    return [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]


def _tint(canvas: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour) -> None:
    """Blends `colour` into `canvas` where `mask` is set, and draws the mask's edge in full colour; in place.

    The tint is faint and the edge strong, so that the object's own colour stays visible.
    """
    canvas[mask] = (canvas[mask] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY).astype(np.uint8)
    inner = mask
    for _ in range(max(1, round(len(canvas) / 240))):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    canvas[mask & ~inner] = colour


def _tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[int],
    colour: Colour,
    letters: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
    others: Sequence[tuple[float, ...]],
) -> tuple[float, ...]:
    """Writes `text` on a coloured tag at the box and returns the tag's rectangle: above the box if it fits there and
    covers no other tag, else in the next best position.
    """
    left, top, right, bottom = draw.textbbox((0, 0), text, font=letters)
    pad = max(2.0, (bottom - top) * 0.25)
    wide, high = right - left + 2 * pad, bottom - top + 2 * pad
    x0, y0, x1, y1 = _ordered(box)
    positions = [(x0, y0 - high), (x0, y1), (x1 - wide, y0 - high), (x1 - wide, y1), (x0, y0), (x0, y1 - high)]
    positions += [(x1, y0), (x0 - wide, y0), (x0, y0 - 2 * high), (x0, y1 + high)]  # beside it, or one row farther
    inside = [(x, y) for x, y in positions if 0 <= y <= size[1] - high]
    choices = [
        (min(max(x, 0.0), max(0.0, size[0] - wide)), y) for x, y in inside or [(x0, max(0.0, min(y0, size[1] - high)))]
    ]
    free = [
        (x, y)
        for x, y in choices
        if not any(x < o[2] and o[0] < x + wide and y < o[3] and o[1] < y + high for o in others)
    ]
    x, y = (free or choices)[0]
    draw.rounded_rectangle((x, y, x + wide, y + high), radius=pad, fill=colour)
    draw.text((x + pad - left, y + pad - top), text, font=letters, fill=ink_on(colour))
    return x, y, x + wide, y + high
