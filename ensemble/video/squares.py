"""Frames and masks of the square that detector and tracker both see, in the sizes of either; and masks' boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ensemble.preprocess.cpu import scaled
from ensemble.video import overlap


class Smaller:
    """Batches uint8 [B,3,R,R] at a lower resolution, filtered as frames are: with Pillow, or where they lie on a GPU
    with the kernels of `ensemble/preprocess/gpu.py`."""

    def __init__(self, resolution: int, device_id: int | None) -> None:
        self._resolution, self._device_id = resolution, device_id
        self._resize: Callable[[Any], Any] | None = None

    def __call__(self, pixel_values: Any) -> Any:
        if isinstance(pixel_values, np.ndarray):
            upright = pixel_values.transpose(0, 2, 3, 1)
            small = [scaled(Image.fromarray(np.ascontiguousarray(p)), self._resolution) for p in upright]
            return np.ascontiguousarray(np.stack(small).transpose(0, 3, 1, 2))
        if self._resize is None:
            from ensemble.preprocess.gpu import GpuDevice

            self._resize = GpuDevice(self._resolution, self._device_id or 0).resize
        return self._resize([picture.transpose(1, 2, 0) for picture in pixel_values])


def resized(bits: np.ndarray, size: int, wanted: int) -> np.ndarray:
    """Packed masks [D,wanted,ceil(wanted/8)] of packed masks [D,size,ceil(size/8)]: a pixel is set where most of it
    was. The masks themselves where the sizes are the same."""
    if size == wanted:
        return bits
    made = np.zeros((len(bits), wanted, -(-wanted // 8)), np.uint8)
    for out, mask in zip(made, np.unpackbits(bits, axis=-1, count=size), strict=True):
        image = Image.fromarray(mask * 255).resize((wanted, wanted), Image.Resampling.BOX)
        out[:] = np.packbits(np.asarray(image) >= 128, axis=-1)
    return made


def boxes(bits: np.ndarray, size: int) -> np.ndarray:
    """float32 [D,4] xyxy in 0..1 around packed masks [D,size,ceil(size/8)], none of them empty."""
    return (overlap.extents(bits)[:, [2, 0, 3, 1]] / size).astype(np.float32)
