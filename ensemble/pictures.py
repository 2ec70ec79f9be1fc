"""Picture files to pixels: the one decoder of the server and of its clients, so both see the same picture or give the
same reason why it is none. Needs Pillow and NumPy alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ensemble.spec import MAX_IMAGE_PIXELS

MAX_IMAGE_SIDE = 32_768
"""Pixels of a picture's longer side. Between its two passes the resize holds side × R pixels: 50 million in one column
would be 50 gigapixels."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""What may be sent."""


class PictureError(ValueError):
    """A file that is no picture; the message says what was expected."""


def decode(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """A file of one of `formats` as an upright RGB image: grey, palette, alpha, CMYK and 16-bit files are converted,
    EXIF orientation is applied.

    Raises PictureError for anything else, for truncated files, and before decoding for more than `MAX_IMAGE_PIXELS`.
    """
    with one_sentence(data, formats):
        image = open_header(data, formats)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def open_header(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The file with its header read and nothing decoded. Raises what Pillow raises, and PictureError for too many
    pixels."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=tuple(formats))
    check_size(image.width, image.height)
    return image


@contextmanager
def one_sentence(data: bytes, formats: Sequence[str] = FORMATS) -> Iterator[None]:
    """Whatever Pillow raises about `data` becomes a PictureError of one sentence."""
    try:
        yield
    except Image.DecompressionBombError:
        raise PictureError(_too_large("a file that claims more")) from None
    except UnidentifiedImageError:
        start = data[:8].hex(" ")
        raise PictureError(
            f"expected a {', '.join(formats)} file, got {len(data):,} bytes"
            + (f" that start with {start}" if data else "")
        ) from None
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error on broken files
        raise PictureError(f"the file cannot be decoded ({error}); send it whole") from None


def check_size(width: int, height: int) -> None:
    """Raises PictureError for more pixels than are taken."""
    if width * height > MAX_IMAGE_PIXELS:
        raise PictureError(_too_large(f"{width}x{height}"))
    if max(width, height) > MAX_IMAGE_SIDE:
        raise PictureError(f"at most {MAX_IMAGE_SIDE:,} pixels a side, got {width}x{height}; scale it down first")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_large(got: str) -> str:
    return f"at most {MAX_IMAGE_PIXELS:,} pixels, got {got}; scale it down first"
