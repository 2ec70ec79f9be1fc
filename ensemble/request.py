"""One frame's request, checked; what is wrong with one is a `RequestError`, whose sentence goes to that caller alone.

Nothing is decoded here and no model is called: whatever can be refused by looking at sizes and values is refused before
it costs anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ensemble.base64_image import file_of
from ensemble.boxes import inside_frame
from ensemble.ending import ServerEnding
from ensemble.spec import (
    DEFAULT_MAX_DETECTIONS,
    DEFAULT_THRESHOLD,
    MASK_FORMATS,
    MAX_CLASSES,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    MAX_PROMPT_CHARACTERS,
)

VISUAL_PROMPT = "visual"
"""SAM3's prompt for boxes without text."""


class RequestError(ValueError):
    """A request that cannot be answered as it is; the message says what was expected, what came, and what to do."""


def sentence(error: Exception) -> str:
    """What a caller is told: a RequestError and a ServerEnding as they are, of others which kind they are."""
    return str(error) if isinstance(error, (RequestError, ServerEnding)) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Exemplars:
    """Boxes that show what is meant: `boxes` float32 [K,4] cxcywh in 0..1, `labels` int32 [K], 1 like this and 0 unlike
    this."""

    boxes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """One frame and what to look for in it. Exactly one of `image` (an encoded file) and `frame` (uint8 [H,W,3] RGB) is
    given."""

    classes: tuple[str, ...]
    image: bytes | None = None
    frame: np.ndarray | None = None
    exemplars: Mapping[int, Exemplars] = field(default_factory=dict)  # index into classes -> boxes
    threshold: float = DEFAULT_THRESHOLD
    mask_format: str = "none"
    max_detections: int = DEFAULT_MAX_DETECTIONS


def parse(arrays: Mapping[str, np.ndarray], max_boxes: int) -> FrameRequest:
    """A `FrameRequest` from arrays named as `Variant.front.inputs`, each with a leading batch dimension of 1.

    Absent and empty arrays mean the default. Raises RequestError. `max_boxes` is exemplar boxes per class.
    """
    for name, array in arrays.items():
        if array.ndim == 0 or array.shape[0] != 1:
            raise RequestError(
                f"{name}: the leading dimension is the batch and must be 1 (one frame a request), got shape"
                f" {list(array.shape)}"
            )
    values = {name: array[0] for name, array in arrays.items() if array.size}
    classes = _classes(values.get("classes"))
    exemplars = _exemplars(values, max(1, len(classes)), max_boxes)
    if not classes:
        if not exemplars:
            raise RequestError("classes: expected at least one class name (or boxes to look for), got none")
        classes = (VISUAL_PROMPT,)
    image, frame = _picture(values)
    return FrameRequest(
        classes=classes,
        image=image,
        frame=frame,
        exemplars=exemplars,
        threshold=_number(values, "threshold", DEFAULT_THRESHOLD, 0.0, 1.0),
        mask_format=_mask_format(values.get("mask_format")),
        max_detections=int(_number(values, "max_detections", DEFAULT_MAX_DETECTIONS, 1, 10_000)),
    )


def _classes(array: np.ndarray | None) -> tuple[str, ...]:
    if array is None:
        return ()
    if len(array) > MAX_CLASSES:
        raise RequestError(
            f"classes: at most {MAX_CLASSES} names a request, got {len(array)}; send the frame again with the others"
        )
    names = []
    for i, raw in enumerate(array.tolist()):
        try:
            name = raw.decode("utf-8") if isinstance(raw, bytes) else str(raw)
        except UnicodeDecodeError as error:
            raise RequestError(
                f"classes[{i}]: expected UTF-8 text, got bytes that are not ({error.reason} at byte {error.start})"
            ) from None
        if not name.strip():
            raise RequestError(f"classes[{i}]: expected a word or phrase, got an empty string")
        if len(name) > MAX_PROMPT_CHARACTERS:
            raise RequestError(
                f"classes[{i}]: at most {MAX_PROMPT_CHARACTERS} characters, got {len(name)}; name the thing in a few"
                " words"
            )
        names.append(name)
    return tuple(names)


def _picture(values: Mapping[str, np.ndarray]) -> tuple[bytes | None, np.ndarray | None]:
    image = bytes(values["image"].item(0)) if "image" in values and values["image"].item(0) else None
    frame = values.get("frame")
    if (image is None) == (frame is None):
        got = "neither" if image is None else "both"
        raise RequestError(
            "expected exactly one of image (JPEG, PNG or WebP file) and frame (uint8 [height, width, 3] RGB), got"
            f" {got}"
        )
    if image is not None:
        try:
            image = file_of(image)
        except ValueError as error:
            raise RequestError(f"image: {error}") from None
    if image is not None and len(image) > MAX_IMAGE_BYTES:
        raise RequestError(
            f"image: at most {MAX_IMAGE_BYTES >> 20} MB, got {len(image) / 2**20:.0f} MB; compress or scale it down"
            " first"
        )
    if frame is not None:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise RequestError(f"frame: expected uint8 [height, width, 3], got {frame.dtype} {list(frame.shape)}")
        if frame.shape[0] * frame.shape[1] > MAX_IMAGE_PIXELS:
            raise RequestError(
                f"frame: at most {MAX_IMAGE_PIXELS:,} pixels, got {frame.shape[1]}x{frame.shape[0]}; scale it down"
                " first"
            )
    return image, frame


def _exemplars(values: Mapping[str, np.ndarray], classes: int, max_boxes: int) -> dict[int, Exemplars]:
    boxes = values.get("boxes")
    if boxes is None:
        return {}
    count = len(boxes)
    labels = values.get("box_labels", np.ones(count, np.int32))
    owners = values.get("box_classes", np.zeros(count, np.int32))
    for name, array in (("box_labels", labels), ("box_classes", owners)):
        if len(array) != count:
            raise RequestError(f"{name}: expected one value per box ({count}), got {len(array)}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise RequestError(f"boxes: expected [count, 4] xyxy, got {list(boxes.shape)}")
    boxes = np.array([_inside_frame(i, box) for i, box in enumerate(boxes.tolist())], np.float64)
    if not np.isin(labels, (0, 1)).all():
        raise RequestError(
            f"box_labels: expected 1 (like this) or 0 (unlike this), got {sorted(set(labels.tolist()) - {0, 1})}"
        )
    if owners.min() < 0 or owners.max() >= classes:
        raise RequestError(f"box_classes: expected indices into classes (0 to {classes - 1}), got {owners.tolist()}")
    cxcywh = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32)
    result = {}
    for owner in np.unique(owners).tolist():
        mine = owners == owner
        if mine.sum() > max_boxes:
            raise RequestError(
                f"boxes: at most {max_boxes} a class, got {int(mine.sum())} for class {owner}; keep the clearest"
                " examples"
            )
        result[owner] = Exemplars(cxcywh[mine], labels[mine].astype(np.int32))
    return result


def _inside_frame(index: int, box: list[float]) -> tuple[float, float, float, float]:
    try:
        return inside_frame(box)
    except ValueError as error:
        raise RequestError(f"boxes[{index}]: {error}") from None


def _number(values: Mapping[str, np.ndarray], name: str, default: float, low: float, high: float) -> float:
    value = values[name].item(0) if name in values else default
    if not low <= value <= high:
        raise RequestError(f"{name}: expected {low:g} to {high:g}, got {value:g}")
    return value


def _mask_format(array: np.ndarray | None) -> str:
    raw = array.item(0) if array is not None else b""
    name = (raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)) or "none"
    if name not in MASK_FORMATS:
        raise RequestError(f"mask_format: expected one of {', '.join(MASK_FORMATS)}, got {name[:40]!r}")
    return name
