"""The camera whose objects the server's tracker follows: whose id each object has before and after it was hidden,
judged by the film's ground truth, and the pictures of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from rich.table import Table

from clients.connection import Client
from clients.conversation import Tracks
from clients.draw import annotate, colour_map, font
from clients.fleet.stats import percentiles
from clients.transport import only_video_model
from clients.video.encode import VideoWriter
from demo.cameras import Reel, Shot
from demo.mosaic import ACCENT, FAINT, HEADER_COLOUR, INK, grid

LEAST_IOU = 0.5
"""A mask that covers an object less than so is not of it. The drawn masks do not overlap, so it is of one at most."""
WHOLE = 0.9
"""An object is drawn before and after it was hidden where so much of the most that is then seen of it is."""
PANEL_WIDTH, HEADER = 480, 36


def video_model(url: str, protocol: str, front: str | None) -> str:
    """The server's video front model that goes with `front`, else its first one. Raises Sam3ServerError, which says
    what to do, if it serves no videos."""
    with Client(url, protocol=protocol) as sam3:
        models, address = sam3.video_models(), sam3.server.address
    own = (front or "").replace("sam3_r", "sam3_video_r", 1)
    return own if own in models else only_video_model(models[:1], address)


def identities(reel: Reel) -> dict[int, dict[int, int]]:
    """Of each answered frame the id that each object of the ground truth was given, where its mask was found."""
    return {shot.index: _identities_in(reel, shot) for shot in reel.shots}


def _identities_in(reel: Reel, shot: Shot) -> dict[int, int]:
    things, tracks = reel.film.objects(shot.index), tracks_of(shot)
    if not things or not len(tracks):
        return {}
    width, height = reel.film.size
    found = rle.encode(np.asfortranarray(tracks.masks_at(height, width).transpose(1, 2, 0), np.uint8))
    shares = np.asarray(rle.iou(found, [thing["mask"] for thing in things], [0] * len(things)))
    best = zip(things, shares.argmax(0), shares.max(0), strict=True)
    return {thing["object"]: int(tracks.track_ids[row]) for thing, row, share in best if share > LEAST_IOU}


def tracks_of(shot: Shot) -> Tracks:
    """The answer of a video front model."""
    assert isinstance(shot.found, Tracks), "cameras with `track: masks` get tracks"
    return shot.found


def summary(reel: Reel, seconds: float) -> dict[str, Any]:
    """What the JSON line says of this camera. `objects` are the different ids that were given, `drawn` the objects that
    the film shows; of each occlusion the object's last id before and its first one after, None where its mask was not
    found. `ids_kept` is None for a film without occlusions."""
    ids, every = identities(reel), set[int]()
    for shot in reel.shots:
        every |= {*tracks_of(shot).track_ids.tolist(), *tracks_of(shot).hidden_ids.tolist()}
    occlusions = []
    for gap in reel.film.truth["occlusions"]:
        seen = {index: found[gap["object"]] for index, found in ids.items() if gap["object"] in found}
        before, after = [i for i in seen if i < gap["first"]], [i for i in seen if i > gap["last"]]
        id_before, id_after = seen[max(before)] if before else None, seen[min(after)] if after else None
        occlusions.append(gap | {"id_before": id_before, "id_after": id_after, "kept": _same(id_before, id_after)})
    return {
        "frames": len(reel.shots),
        "failed": len(reel.errors),
        "fps": round(len(reel.shots) / seconds, 2) if seconds else 0.0,
        "p50_ms": round(percentiles(reel.latencies)[0], 1),
        "drawn": len({thing["object"] for frame in reel.film.truth["frames"] for thing in frame}),
        "objects": len(every),
        "occlusions": occlusions,
        "ids_kept": all(gap["kept"] for gap in occlusions) if occlusions else None,
    }


def _same(before: int | None, after: int | None) -> bool:
    return before is not None and before == after


def table(result: dict[str, Any]) -> Table:
    """One row per occlusion of a `summary` with the `model`."""
    sheet = Table(title=f"One camera, followed by {result['model']}")
    columns = ("frames", "failed", "fps", "p50 ms", "objects drawn", "followed")
    for name in (*columns, "hidden", "in frames", "id before", "id after", "kept"):
        sheet.add_column(name, justify="left" if name == "hidden" else "right")
    values = (result[key] for key in ("frames", "failed", "fps", "p50_ms", "drawn", "objects"))
    first = [str(value) for value in values]
    for gap in result["occlusions"]:
        ids = ("-" if gap[key] is None else f"#{gap[key]}" for key in ("id_before", "id_after"))
        kept = "yes" if gap["kept"] else "no"
        sheet.add_row(*first, gap["class"], f"{gap['first']} to {gap['last']}", *ids, kept)
        first = [""] * len(columns)
    if not result["occlusions"]:
        sheet.add_row(*first)
    return sheet


def draw(reel: Reel, video: Path, picture: Path) -> None:
    """Writes all answered frames as a video, and four moments of the longest occlusion as PNG: before, half hidden,
    hidden, after. Without answered frames nothing is written."""
    if not reel.shots:
        return
    with VideoWriter(video, fps=reel.fps) as writer:
        for shot in reel.shots:
            writer.write(np.asarray(panel(reel, shot)))
    Image.fromarray(grid([panel(reel, shot) for shot in moments(reel)])).save(picture, optimize=True)


def moments(reel: Reel) -> list[Shot]:
    """The answered frames that show the longest occlusion, at most four."""
    wanted = [0, reel.film.count - 1]
    if gaps := reel.film.truth["occlusions"]:
        gap = max(gaps, key=lambda g: g["last"] - g["first"])
        areas = np.zeros(reel.film.count)
        for index in range(len(areas)):
            areas[index] = sum(t["area"] for t in reel.film.objects(index) if t["object"] == gap["object"])
        start, end = areas[: gap["first"]], areas[gap["last"] + 1 :]
        before = np.flatnonzero(start > WHOLE * start.max()).max()
        after = gap["last"] + 1 + np.flatnonzero(end > WHOLE * end.max()).min()
        wanted = [before, (before + gap["first"]) // 2, (gap["first"] + gap["last"]) // 2, after]
    nearest = [min(reel.shots, key=lambda shot, i=i: abs(shot.index - i)) for i in wanted]  # type: ignore[misc]
    return list(dict.fromkeys(nearest))


def panel(reel: Reel, shot: Shot) -> Image.Image:
    """One frame with its masks and ids, below a line that says which objects are hidden."""
    tracks, (width, height) = tracks_of(shot), reel.film.size
    size = PANEL_WIDTH, round(PANEL_WIDTH * height / width / 2) * 2
    frame = np.asarray(Image.open(io.BytesIO(shot.jpeg)).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    drawn = annotate(frame, tracks, tracks=tracks.track_ids.tolist(), colours=colour_map(reel.film.classes), scale=1.2)
    sheet = Image.new("RGB", (size[0], size[1] + HEADER), HEADER_COLOUR)
    sheet.paste(Image.fromarray(drawn), (0, HEADER))
    line = ImageDraw.Draw(sheet)
    line.text((12, HEADER / 2), f"frame {shot.index}", font=font(20), fill=INK, anchor="lm")
    hidden = _listed(tracks.hidden_ids.tolist())
    where, colour = (f"hidden: {hidden}", ACCENT) if hidden else ("nothing is hidden", FAINT)
    line.text((size[0] - 12, HEADER / 2), where, font=font(20), fill=colour, anchor="rm")
    return sheet


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(f"#{number}" for number in ids)
