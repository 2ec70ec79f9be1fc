"""The wire format: the arrays of one request to the front model, and `Detections` from the arrays of its response.

Names, dtypes and ranks come from the specification (`ensemble/spec.py`). Every input is always sent, empty where it is
unused, because Triton batches only requests that name the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tritonclient.utils import triton_to_np_dtype

from clients.detections import Detections
from clients.errors import VERSIONS, InvalidRequest, WrongVersion
from ensemble.records import Axis, ModelSpec, TensorSpec
from ensemble.spec import DEFAULT_MAX_DETECTIONS, DEFAULT_THRESHOLD, STAGES, Variant

Image = bytes | str | Path | NDArray[np.uint8]
"""An encoded image (JPEG, PNG, WebP), the path of one, or RGB pixels uint8 [H,W,3]."""

FRONT: ModelSpec = Variant().front
"""Names, dtypes and ranks of the front model: the same at every resolution, only the mask size differs."""


class Options(TypedDict, total=False):
    """The options of a request; `build_request` explains each."""

    boxes: ArrayLike | None
    box_labels: ArrayLike | None
    box_classes: ArrayLike | None
    threshold: float | None
    mask_format: str
    max_detections: int | None


def build_request(
    image: Image,
    classes: Sequence[str],
    *,
    boxes: ArrayLike | None = None,
    box_labels: ArrayLike | None = None,
    box_classes: ArrayLike | None = None,
    threshold: float | None = None,
    mask_format: str = "none",
    max_detections: int | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays of one request by input name, in the specification's order, each with a leading batch dimension of 1.

    `boxes` [K,4] are exemplars, xyxy in 0..1 of the frame; `box_labels` [K] are 1 (find what looks like this) or 0
    (exclude it), by default all 1; `box_classes` [K] are indices into `classes`, by default all 0, which requires at
    most one class. `threshold` is the lowest score (default 0.5), `mask_format` one of `ensemble.spec.MASK_FORMATS`,
    `max_detections` the most detections per frame (default 100).

    The server checks values and limits. Raises InvalidRequest only for what cannot be sent: wrong dtypes or shapes, or
    an unreadable file.
    """
    if isinstance(classes, (str, bytes)):
        raise InvalidRequest(f"classes must be a list of names, got the single string {classes!r}; write [{classes!r}]")
    encoded, frame = image_and_frame(image)
    count = 0 if boxes is None else len(boxes)  # type: ignore[arg-type]
    if count and box_classes is None and len(classes) > 1:
        raise InvalidRequest(
            f"box_classes must say which of the {len(classes)} classes each of the {count} boxes belongs to, got none"
        )
    values: dict[str, Any] = {
        "image": [encoded],
        "frame": frame,
        "classes": [utf8(name) for name in classes],
        "boxes": np.zeros((0, 4)) if not count else boxes,
        "box_labels": np.ones(count) if box_labels is None else box_labels,
        "box_classes": np.zeros(count) if box_classes is None else box_classes,
        "threshold": [DEFAULT_THRESHOLD if threshold is None else threshold],
        "mask_format": [utf8(mask_format)],
        "max_detections": [DEFAULT_MAX_DETECTIONS if max_detections is None else max_detections],
    }
    return as_tensors(FRONT, values)


def as_tensors(front: ModelSpec, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The inputs of a front model in its order, each with a leading 1. Raises InvalidRequest for what does not fit."""
    return {tensor.name: _as_tensor(tensor, values[tensor.name]) for tensor in front.inputs}


def parse_response(
    output: Callable[[str], NDArray[Any] | None], classes: Sequence[str], *, model: str, latency_ms: float = 0.0
) -> Detections:
    """`Detections` from the arrays of one response. `output(name)` returns the array with its leading 1, or None if the
    response lacks it.

    Raises WrongVersion where an output is missing: then the model is not a front model of this version.
    """
    return Detections(**fields_of(outputs_of(FRONT, output, model), classes, STAGES, model, latency_ms))


def outputs_of(front: ModelSpec, output: Callable[[str], NDArray[Any] | None], model: str) -> dict[str, NDArray[Any]]:
    """All outputs of a front model's response, without their leading 1. Raises WrongVersion where one is missing."""
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in front.outputs:
        array = output(tensor.name)
        if array is None:
            raise WrongVersion(f"the answer of {model!r} lacks the output {tensor.name!r}; {VERSIONS}")
        # over HTTP tritonclient returns zero-size outputs as float64, so the specification's dtype is applied
        arrays[tensor.name] = np.asarray(array).astype(triton_to_np_dtype(tensor.dtype), copy=False)[0]
    return arrays


def fields_of(
    arrays: Mapping[str, NDArray[Any]], classes: Sequence[str], stages: Sequence[str], model: str, latency_ms: float
) -> dict[str, Any]:
    """The fields of `Detections`. Raises WrongVersion where the stages are not as many as expected."""
    if len(arrays["stage_ms"]) != len(stages):
        raise WrongVersion(
            f"the answer of {model!r} has {len(arrays['stage_ms'])} stage times, expected {len(stages)}; {VERSIONS}"
        )
    height, width = (int(side) for side in arrays["frame_size"])
    return dict(
        boxes=arrays["boxes"].reshape(-1, 4),
        scores=arrays["scores"],
        class_ids=arrays["class_ids"],
        # a request with boxes only has no names; SAM3 itself calls that prompt "visual"
        classes=tuple(classes) or ("visual",),
        presence=arrays["presence"],
        frame_size=(height, width),
        stage_ms=dict(zip(stages, arrays["stage_ms"].tolist(), strict=True)),
        batch=int(arrays["batch"][0]),
        model=model,
        latency_ms=latency_ms,
        mask_bits=arrays["mask_bits"],
        mask_rle=tuple(bytes(counts) for counts in arrays["mask_rle"]),
    )


def image_and_frame(image: Image) -> tuple[bytes, NDArray[np.uint8]]:
    """The inputs `image` and `frame`, of which one is empty."""
    nothing = np.zeros((0, 0, 3), np.uint8)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InvalidRequest(
                f"pixels must be uint8 [height, width, 3] in RGB order, got {image.dtype} {list(image.shape)}"
            )
        return b"", image
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image), nothing
    if isinstance(image, (str, Path)):
        try:
            return Path(image).read_bytes(), nothing
        except OSError as error:
            raise InvalidRequest(f"cannot read the image {str(image)!r}: {error.strerror or error}") from error
    raise InvalidRequest(
        f"image must be encoded bytes, a path, or a uint8 array [height, width, 3], got {type(image).__name__}"
    )


def utf8(text: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(f"class names and formats must be text, got {type(text).__name__} {text!r}")
    return text.encode()


def _as_tensor(tensor: TensorSpec, value: Any) -> NDArray[Any]:
    """`value` in the tensor's dtype with a leading 1. Raises InvalidRequest, naming the expected shape, if it does not
    fit."""
    dtype = triton_to_np_dtype(tensor.dtype)
    try:
        array = np.array(value, dtype=dtype) if tensor.dtype == "BYTES" else np.ascontiguousarray(value, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{tensor.name} must be {tensor.dtype} {_dims(tensor)}, got {value!r} ({error})"
        ) from error
    fits = array.ndim == len(tensor.dims) and all(
        isinstance(want, Axis) or want == have for want, have in zip(tensor.dims, array.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(f"{tensor.name} must have the shape {_dims(tensor)}, got {list(array.shape)}")
    return array[None]


def _dims(tensor: TensorSpec) -> str:
    return "[" + ", ".join(d.name if isinstance(d, Axis) else str(d) for d in tensor.dims) + "]"
