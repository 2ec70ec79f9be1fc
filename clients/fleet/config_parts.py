"""Readers for the parts of a camera's configuration: classes, model, zones, motion and zoom. All raise ConfigError."""

from __future__ import annotations

from typing import Any

from clients.fleet.yaml_lines import ConfigError, Entry
from clients.fleet.zones import Zone
from clients.fleet.zoom import Zoom
from clients.video.motion import Motion
from ensemble.spec import Tracker, Variant
from ensemble.video.variant import VideoVariant


def read_threshold(entry: Entry) -> float:
    """A score from 0 to 1."""
    return entry.number(0, 1, "a score from 0 to 1")


def read_classes(entry: Entry, threshold: float) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Class names and their thresholds, from a list of names or a mapping from name to threshold. `threshold` is the
    one of a class without its own."""
    if isinstance(entry.value, dict) and entry.value:
        thresholds = (threshold if e.value is None else read_threshold(e) for e in entry.value.values())
        return tuple(entry.value), tuple(thresholds)
    names = tuple(
        e.text("the name of a class") for e in entry.items("a list of class names, or a mapping from name to threshold")
    )
    if len(set(names)) < len(names):
        entry.fail("class names that differ")
    return names, (threshold,) * len(names)


def read_model(given: dict[str, Entry], video: bool = False) -> str | None:
    """The front model's name, from `resolution` or `model`; None where neither is set. With `video` the one of
    videos."""
    if "resolution" in given:
        entry = given["resolution"]
        side = entry.whole(14, 8192, "pixels, a multiple of 14")
        variant: Variant = entry.check(lambda: Variant(side, tracker=Tracker() if video else None))
        return VideoVariant(variant, variant).front_name if video else variant.front_name
    return given["model"].text("a front model such as sam3_r672") if "model" in given else None


def read_track(entry: Entry) -> str | None:
    """How objects get their ids: None, "boxes" or "masks"."""
    ways = {False: None, True: "boxes", "boxes": "boxes", "masks": "masks"}
    if not isinstance(entry.value, (bool, str)) or entry.value not in ways:
        entry.fail("true, false, boxes or masks")
    return ways[entry.value]


def read_polygon(entry: Entry) -> tuple[tuple[float, float], ...]:
    """At least three corners (x, y) in 0..1 of the frame."""
    corners = []
    for corner in entry.items("a list of at least three corners [x, y]"):
        if not isinstance(corner.value, list) or len(corner.value) != 2:
            corner.fail("a corner [x, y]")
        x, y = (side.number(0, 1, "a fraction of the frame from 0 to 1") for side in corner.value)
        corners.append((x, y))
    if len(corners) < 3:
        raise ConfigError(
            f"{entry.file}:{entry.line}: {entry.what}: expected at least three corners, got {len(corners)}"
        )
    return tuple(corners)


def read_motion(entry: Entry) -> Motion | None:
    """What counts as movement: true, false, or a mapping; None where every frame is sent."""
    if isinstance(entry.value, bool):
        return Motion() if entry.value else None
    if not isinstance(entry.value, dict):
        entry.fail("true, false, or a mapping with sensitivity, smallest, regions and refresh_s")
    given = entry.mapping({"sensitivity", "smallest", "regions", "refresh_s"})
    options: dict[str, Any] = {}
    if "sensitivity" in given:
        options["sensitivity"] = given["sensitivity"].number(0, 1, "a sensitivity from 0 to 1")
    if "smallest" in given:
        options["smallest"] = given["smallest"].number(1e-5, 1, "a fraction of the frame's area from 0.00001 to 1")
    if "refresh_s" in given:
        options["refresh_s"] = given["refresh_s"].number(0.1, 86400, "seconds from 0.1 to 86400")
    if "regions" in given:
        regions = given["regions"].items("a list of polygons, each a list of corners [x, y]")
        options["regions"] = tuple(read_polygon(region) for region in regions)
    motion: Motion = given.get("regions", entry).check(lambda: Motion(**options))
    return motion


def read_zone(entry: Entry, classes: tuple[str, ...]) -> Zone:
    """One zone of a camera with these classes."""
    given = entry.mapping({"name", "polygon", "seconds", "classes"}, ("name", "polygon"))
    corners = read_polygon(given["polygon"])
    wanted: list[str] = []
    for name in given["classes"].items("a list of class names") if "classes" in given else []:
        wanted.append(name.choice(*classes))
    seconds = given["seconds"].number(0, 86400, "seconds from 0 to 86400") if "seconds" in given else 0.0
    return Zone(given["name"].text("a name"), corners, seconds, tuple(wanted))


def read_zoom(entry: Entry, classes: tuple[str, ...]) -> Zoom:
    """The second pass of a camera with these classes."""
    given = entry.mapping({"resolution", "model", "classes", "suspect", "crops", "margin", "least", "largest"})
    model = read_model(given)
    if model is None:
        raise ConfigError(
            f"{entry.file}:{entry.line}: {entry.what}: 'resolution' or 'model' of the second pass is missing"
        )
    options: dict[str, Any] = {}
    if "classes" in given:
        options["classes"] = tuple(name.choice(*classes) for name in given["classes"].items("a list of class names"))
    if "crops" in given:
        options["crops"] = given["crops"].whole(1, 64, "a whole number from 1 to 64")
    if "margin" in given:
        options["margin"] = given["margin"].number(1, 20, "a factor from 1 to 20")
    for key in ("suspect", "least", "largest"):
        if key in given:
            options[key] = given[key].number(0.01, 1, "a number from 0.01 to 1")
    return Zoom(model, **options)
