"""A frame as its camera sent it in, uint8 [3,R,R] as the vision encoder wants it out.

Matches the checkpoint's own processor: RGB, stretched to a square with antialiased bilinear filtering; scaling to -1..1 is inside the vision encoder.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ensemble.request import FrameRequest, RequestError
from ensemble.spec import MAX_IMAGE_PIXELS

Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
FORMATS = ("JPEG", "PNG", "WEBP")


def load(request: FrameRequest) -> Image.Image:
    """The request's picture as an upright RGB image. Raises RequestError where it cannot be decoded."""
    return decode(request.image) if request.image is not None else Image.fromarray(np.ascontiguousarray(request.frame))


def decode(data: bytes) -> Image.Image:
    """A JPEG, PNG or WebP file as an upright RGB image: grey, palette, alpha, CMYK and 16-bit files are converted, EXIF orientation is applied.

    Raises RequestError for anything else, for truncated files, and before decoding for more than `MAX_IMAGE_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise RequestError(_too_large(f"{image.width}x{image.height}"))
            image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError(_too_large("a file that claims more")) from None
    except UnidentifiedImageError:
        start = data[:8].hex(" ")
        raise RequestError(
            f"image: expected a {', '.join(FORMATS)} file, got {len(data):,} bytes that start with {start}"
        ) from None
    except RequestError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error ... on broken files
        raise RequestError(f"image: the file cannot be decoded ({error}); send it whole") from None


def to_pixel_values(image: Image.Image, resolution: int) -> np.ndarray:
    """uint8 [3,R,R]: the image stretched to a square. Bilinear with antialiasing, as Pillow does whenever it scales down."""
    if image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_large(got: str) -> str:
    return f"image: at most {MAX_IMAGE_PIXELS:,} pixels, got {got}; scale it down first"
