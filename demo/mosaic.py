"""The mosaic: a video of all cameras side by side, and a PNG of the moment with the most detections.

It is drawn after the run, so that drawing does not slow the measurement. Each panel shows a camera's frame with its
detections, its classes in their colours and its frame rate; the last panel shows the figures of the whole run.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clients.detections import Detections
from clients.draw import Colour, annotate, colour_map, font
from clients.video.encode import VideoWriter
from demo.cameras import Reel, Shot
from ensemble.spec import DEFAULT_THRESHOLD

PANEL_WIDTH, HEADER, GUTTER = 640, 76, 8
BACKGROUND, HEADER_COLOUR, INK, FAINT = (13, 16, 22), (27, 32, 42), (240, 243, 248), (148, 158, 174)
ACCENT = (118, 185, 0)


@dataclass(frozen=True, slots=True)
class Figures:
    """The contents of the last panel: a title, a line below it, (value, label) pairs, and milliseconds by stage."""

    title: str
    subtitle: str
    values: tuple[tuple[str, str], ...]
    stage_ms: dict[str, float]


def write(
    reels: Sequence[Reel], figures: Figures, video: Path, picture: Path, progress: Callable[[], None] = lambda: None
) -> int:
    """Writes the video, and the moment with the most detections as PNG; returns the number of moments. A camera without
    further frames shows its last one, darkened.
    """
    moments = max((len(reel.shots) for reel in reels), default=0)
    if not moments:
        return 0
    summary = _figures_panel(figures, _panel_size(reels))
    best, most = 0, -1
    with VideoWriter(video, fps=min(reel.fps for reel in reels)) as writer:
        for moment in range(moments):
            writer.write(compose(reels, moment, summary))
            count = sum(len(_sure(reel.shots[moment])) for reel in reels if moment < len(reel.shots))
            if count > most:
                best, most = moment, count
            progress()
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(compose(reels, best, summary)).save(picture, optimize=True)
    return moments


def compose(reels: Sequence[Reel], moment: int, summary: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H,W,3]: the panels of one moment in a nearly square grid, the summary last."""
    return grid([_camera_panel(reel, moment, _panel_size(reels)) for reel in reels] + [summary])


def grid(panels: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """uint8 [H,W,3]: panels of one size, side by side in nearly as many rows as columns."""
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    wide, high = panels[0].size
    sheet = Image.new("RGB", (columns * (wide + GUTTER) + GUTTER, rows * (high + GUTTER) + GUTTER), BACKGROUND)
    for i, panel in enumerate(panels):
        sheet.paste(panel, (GUTTER + i % columns * (wide + GUTTER), GUTTER + i // columns * (high + GUTTER)))
    return np.asarray(sheet)


def _panel_size(reels: Sequence[Reel]) -> tuple[int, int]:
    """Width and height of a panel without its header: the first camera's shape, `PANEL_WIDTH` wide."""
    width, height = reels[0].film.size
    return PANEL_WIDTH, round(PANEL_WIDTH * height / width / 2) * 2


def _sure(shot: Shot) -> Detections:
    return shot.found.above(DEFAULT_THRESHOLD)


def _camera_panel(reel: Reel, moment: int, size: tuple[int, int]) -> Image.Image:
    panel = Image.new("RGB", (size[0], size[1] + HEADER), HEADER_COLOUR)
    colours = colour_map(reel.film.classes)
    _header(panel, reel, colours)
    if not reel.shots:
        ImageDraw.Draw(panel).text(
            (size[0] / 2, HEADER + size[1] / 2), "no frame was answered", font=font(24), fill=FAINT, anchor="mm"
        )
        return panel
    shot = reel.shots[min(moment, len(reel.shots) - 1)]
    frame = np.asarray(Image.open(io.BytesIO(shot.jpeg)).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    drawn = annotate(frame, _sure(shot), colours=colours)
    panel.paste(Image.fromarray(drawn if moment < len(reel.shots) else (drawn * 0.4).astype(np.uint8)), (0, HEADER))
    return panel


def _header(panel: Image.Image, reel: Reel, colours: dict[str, Colour]) -> None:
    """Name on the left and frame rate on the right, below them a dot and a name per class; classes that do not fit are
    counted."""
    draw = ImageDraw.Draw(panel)
    upper, lower, margin = HEADER * 0.30, HEADER * 0.72, 16
    draw.text((margin, upper), reel.film.name, font=font(25), fill=INK, anchor="lm")
    draw.text(
        (panel.width - margin, upper), f"{reel.frames_per_second:.1f} fps", font=font(25), fill=ACCENT, anchor="rm"
    )
    x = float(margin)
    for i, (name, colour) in enumerate(colours.items()):
        wide = 20 + draw.textlength(name, font=font(20))
        if x + wide > panel.width - (margin if i == len(colours) - 1 else 60):
            draw.text((x, lower), f"+{len(colours) - i}", font=font(20), fill=FAINT, anchor="lm")
            break
        draw.ellipse((x, lower - 6, x + 13, lower + 7), fill=colour)
        draw.text((x + 20, lower), name, font=font(20), fill=FAINT, anchor="lm")
        x += wide + 22


def _figures_panel(figures: Figures, size: tuple[int, int]) -> Image.Image:
    panel = Image.new("RGB", (size[0], size[1] + HEADER), HEADER_COLOUR)
    draw = ImageDraw.Draw(panel)
    left, width, height = 28, size[0] - 56, panel.height
    draw.text((left, height * 0.10), figures.title, font=font(34), fill=INK, anchor="lm")
    draw.text((left, height * 0.19), figures.subtitle, font=font(19), fill=FAINT, anchor="lm")
    columns = math.ceil(len(figures.values) / 2)
    for i, (value, what) in enumerate(figures.values):
        x, y = left + i % columns * width / columns, height * (0.32 + 0.22 * (i // columns))
        draw.text((x, y), value, font=font(44), fill=ACCENT, anchor="lm")
        draw.text((x, y + 38), what, font=font(18), fill=FAINT, anchor="lm")
    draw.text((left, height * 0.80), "where a frame's time goes in the server", font=font(18), fill=FAINT, anchor="lm")
    _stage_bar(draw, figures.stage_ms, (left, height * 0.84, left + width, height * 0.84 + 22))
    return panel


def _stage_bar(draw: ImageDraw.ImageDraw, stage_ms: dict[str, float], box: tuple[float, float, float, float]) -> None:
    """A bar divided by stages; below it the names of those above 4 %."""
    stages = {name: ms for name, ms in stage_ms.items() if name != "total" and ms > 0}
    whole = sum(stages.values()) or 1.0
    colours = colour_map(list(stages))
    x, y0, x1, y1 = box
    left = legend = x
    for name, ms in stages.items():
        end = x + (x1 - left) * ms / whole
        draw.rectangle((x, y0, end, y1), fill=colours[name])
        x = end
        if ms / whole > 0.04:
            text = f"{name} {ms:.0f} ms"
            draw.ellipse((legend, y1 + 12, legend + 10, y1 + 22), fill=colours[name])
            draw.text((legend + 15, y1 + 17), text, font=font(16), fill=FAINT, anchor="lm")
            legend += 32 + draw.textlength(text, font=font(16))
