"""Decoding and resizing of frames into the vision encoder's batch, uint8 [B,3,R,R], on the CPU or with a GPU.

Matches the checkpoint's own processor: RGB, stretched to a square with antialiased bilinear filtering; scaling to -1..1
is inside the vision encoder. Whether a file is a picture at all is Pillow's decision in both ways, so a bad one gets
the same sentence from both. `ensemble/preprocess/gpu.py` is the `Device` of the second way; this module needs no GPU
library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ensemble import pictures
from ensemble.request import FrameRequest, RequestError

END_OF_IMAGE = b"\xff\xd9"
TRAILER_BYTES = 64
"""Cameras pad their files with zeros; the end-of-image marker is looked for in this many last bytes."""

PART_BYTES = 128 << 20
"""Decoded pictures that lie on a GPU at a time: a batch of larger frames, as of 4K, is read in parts."""

Size = tuple[int, int]
"""Height and width of the upright frame, in pixels."""
Prepared = tuple[Any, list[Size | Exception]]
"""The batch uint8 [B,3,R,R] of the frames that could be read, in order, and for every frame its size or why it could
not."""
Preprocessor = Callable[[Sequence[FrameRequest]], Prepared]


class Device(Protocol):
    """What `DevicePreprocessor` needs of a GPU. Pictures are uint8 [H,W,3]."""

    def decode(self, files: Sequence[bytes]) -> list[Any]:
        """Pictures on the device of JPEG files, None for what it cannot decode."""

    def resize(self, pictures: Sequence[Any]) -> Any:
        """The batch of pictures on the device or on the host, of any sizes; finished when this returns."""


class CpuPreprocessor:
    """Decodes and resizes with Pillow, a frame per thread of `pool`."""

    def __init__(self, resolution: int, pool: Executor) -> None:
        self.resolution, self._pool = resolution, pool

    def __call__(self, requests: Sequence[FrameRequest]) -> Prepared:
        made = list(self._pool.map(lambda request: attempt(self._prepare, request), requests))
        good = [m[0] for m in made if not isinstance(m, Exception)]
        batch = np.stack(good) if good else np.empty((0, 3, self.resolution, self.resolution), np.uint8)
        return batch, [m if isinstance(m, Exception) else m[1] for m in made]

    def _prepare(self, request: FrameRequest) -> tuple[np.ndarray, Size]:
        image = load(request)
        return to_pixel_values(image, self.resolution), (image.height, image.width)


class DevicePreprocessor:
    """Decodes the plain JPEG files of a batch in one call of `device`, or in several where they are large, everything
    else with Pillow in `pool`, and resizes all frames on `device`."""

    def __init__(self, device: Device, pool: Executor) -> None:
        self._device, self._pool = device, pool

    def __call__(self, requests: Sequence[FrameRequest]) -> Prepared:
        pictures = [attempt(_header, request) for request in requests]
        self._load(requests, pictures)
        made = [self._read(requests[part], pictures[part]) for part in _parts(pictures)]
        batches = [batch for batch, _ in made if len(batch)] or [self._device.resize([])]
        return joined(batches), [size for _, sizes in made for size in sizes]

    def _read(self, requests: Sequence[FrameRequest], pictures: list[Any]) -> Prepared:
        files = {i: picture for i, picture in enumerate(pictures) if isinstance(picture, PlainJpeg)}
        decoded = (
            dict(zip(files, self._device.decode([file.data for file in files.values()]), strict=True)) if files else {}
        )
        for i, file in files.items():
            fits = getattr(decoded[i], "shape", None) == (*file.size, 3)
            pictures[i] = decoded[i] if fits else None
        self._load(requests, pictures)
        batch = self._device.resize([picture for picture in pictures if not isinstance(picture, Exception)])
        return batch, [p if isinstance(p, Exception) else (p.shape[0], p.shape[1]) for p in pictures]

    def _load(self, requests: Sequence[FrameRequest], pictures: list[Any]) -> None:
        """Has Pillow decode what is None."""
        left = [i for i, picture in enumerate(pictures) if picture is None]
        for i, picture in zip(left, self._pool.map(lambda i: attempt(_load_array, requests[i]), left), strict=True):
            pictures[i] = picture


def _parts(pictures: Sequence[Any]) -> Iterator[slice]:
    """Stretches of pictures that take at most `PART_BYTES` decoded, and one that takes more by itself."""
    start, total = 0, 0
    for i, picture in enumerate(pictures):
        size = 0 if isinstance(picture, Exception) else _decoded_bytes(picture)
        if i > start and total + size > PART_BYTES:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if pictures:
        yield slice(start, len(pictures))


def _decoded_bytes(picture: PlainJpeg | np.ndarray) -> int:
    return 3 * picture.size[0] * picture.size[1] if isinstance(picture, PlainJpeg) else picture.nbytes


def joined(pixel_values: Sequence[Any]) -> Any:
    """Several batches of pixels as one: NumPy's, or CuPy's on their GPU."""
    if len(pixel_values) == 1:
        return pixel_values[0]
    if isinstance(pixel_values[0], np.ndarray):
        return np.concatenate(pixel_values)
    import cupy

    return cupy.concatenate(pixel_values)


@dataclass(frozen=True, slots=True)
class PlainJpeg:
    """A whole, upright JPEG file of 8-bit grey or YCbCr, which every decoder shows alike; `size` is from its header."""

    data: bytes
    size: Size


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or what it raised: one frame that fails must not fail its batch."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def load(request: FrameRequest) -> Image.Image:
    """The request's picture as an upright RGB image. Raises RequestError where it cannot be decoded."""
    if request.image is not None:
        return decode(request.image)
    assert request.frame is not None, "a request has one or the other"
    with _refused("frame"):
        pictures.check_size(request.frame.shape[1], request.frame.shape[0])
    return Image.fromarray(np.ascontiguousarray(request.frame))


def decode(data: bytes) -> Image.Image:
    """The picture of `ensemble.pictures.decode`. Raises RequestError where that raises PictureError."""
    with _refused("image"):
        return pictures.decode(data)


def plain_jpeg(data: bytes) -> PlainJpeg | None:
    """The file, if any decoder may read it; None where Pillow has to. Reads the header alone. Raises RequestError as
    `decode` does."""
    with _refused("image"), pictures.one_sentence(data):
        image = pictures.open_header(data)
        if image.format != "JPEG" or image.mode not in ("RGB", "L"):
            return None
        components = bytes(layer[0] for layer in getattr(image, "layer", ()))
        stored_as_rgb = image.info.get("adobe_transform") == 0 or components == b"RGB"
        whole = data[-TRAILER_BYTES:].rstrip(b"\0").endswith(END_OF_IMAGE)
        if stored_as_rgb or not whole or pictures.orientation(image) != 1:
            return None
        return PlainJpeg(data, (image.height, image.width))


def scaled(image: Image.Image, resolution: int) -> np.ndarray:
    """uint8 [R,R,3]: the image stretched to a square. Bilinear with antialiasing, as Pillow does whenever it scales
    down."""
    if image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(image)


def to_pixel_values(image: Image.Image, resolution: int) -> np.ndarray:
    """uint8 [3,R,R] of `scaled`."""
    return np.ascontiguousarray(scaled(image, resolution).transpose(2, 0, 1))


def _header(request: FrameRequest) -> PlainJpeg | np.ndarray | None:
    """A file for the device to decode, a raw frame, or None for what Pillow has to load."""
    return _load_array(request) if request.image is None else plain_jpeg(request.image)


def _load_array(request: FrameRequest) -> np.ndarray:
    if request.frame is None:
        return np.asarray(load(request))
    with _refused("frame"):
        pictures.check_size(request.frame.shape[1], request.frame.shape[0])
    return np.ascontiguousarray(request.frame)


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """A PictureError becomes a RequestError about the input `name`."""
    try:
        yield
    except pictures.PictureError as error:
        raise RequestError(f"{name}: {error}") from None
