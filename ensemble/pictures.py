"""Picture files to pixels: the one decoder of the server and of its clients, so both see the same picture or give the
same reason why it is none. Needs Pillow and NumPy alone."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ensemble.spec import MAX_IMAGE_PIXELS

# What Pillow only warns of (damaged EXIF data, a size that may be meant to hurt) is taken or refused; nobody's screen
# needs its lines of Python.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_IMAGE_SIDE = 32_768
"""Pixels of a picture's longer side. Between its two passes the resize holds side × R pixels: 50 million in one column
would be 50 gigapixels."""
MAX_SCANS = 50
"""Passes over all pixels in which a JPEG may be coded. Progressive ones have about ten; each takes 0.03 s of 50
megapixels, but as little as 75 bytes of the file, so that 300 kB could keep a processor busy for minutes."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""What may be sent."""
_BEGINS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM"),
}
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations (CIPA DC-008, 4.6.5) and what makes them upright."""
_START_OF_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_BARE = re.compile(rb"[\x01\xd0-\xd7]")
"""JPEG's markers without a segment behind them (ITU-T T.81, table B.1), but for start and end of the image."""


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
        return _to_rgb(_upright(image))


def open_header(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The file with its header read and nothing decoded. Raises what Pillow raises, and PictureError for too many
    pixels or scans."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=tuple(formats))
    check_size(image.width, image.height)
    if data.count(_START_OF_SCAN) > MAX_SCANS and data.startswith(b"\xff\xd8"):
        _check_scans(data)
    return image


@contextmanager
def one_sentence(data: bytes, formats: Sequence[str] = FORMATS) -> Iterator[None]:
    """Whatever Pillow raises about `data` becomes a PictureError of one sentence."""
    try:
        yield
    except Image.DecompressionBombError:
        raise PictureError(_too_large("a file that claims more")) from None
    except UnidentifiedImageError:
        if kind := next((kind for kind in formats if _BEGINS[kind].match(data)), ""):
            raise PictureError(f"the file begins as a {kind}, but its header cannot be read; send it whole") from None
        start = data[:8].hex(" ")
        raise PictureError(
            f"expected a {', '.join(formats)} file, got {len(data):,} bytes"
            + (f" that start with {start}" if data else "")
        ) from None
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error on broken files
        raise PictureError(f"the file cannot be decoded ({error}); send it whole") from None


def orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8 as EXIF has it; 1, upright, too where that cannot be read: damaged EXIF data says
    nothing about the pixels."""
    try:
        told = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # SyntaxError, TypeError, struct.error and others
        return 1
    return told if told in _TURNS else 1


def check_size(width: int, height: int) -> None:
    """Raises PictureError for more pixels than are taken."""
    if width * height > MAX_IMAGE_PIXELS:
        raise PictureError(_too_large(f"{width}x{height}"))
    if max(width, height) > MAX_IMAGE_SIDE:
        raise PictureError(f"at most {MAX_IMAGE_SIDE:,} pixels a side, got {width}x{height}; scale it down first")


def _check_scans(data: bytes) -> None:
    """Raises PictureError for a JPEG of too many scans. Goes from marker to marker as libjpeg does: the same bytes may
    occur in a thumbnail, or in the film behind a moving photo."""
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) and found[1] not in (b"\xd8", b"\xd9"):
        at = found.end()
        scans += found[1] == _START_OF_SCAN[1:]
        if scans > MAX_SCANS:
            raise PictureError(f"at most {MAX_SCANS} scans in a JPEG, got more; save it again, not progressive")
        if not _BARE.match(found[1]):
            at += int.from_bytes(data[at : at + 2], "big")


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS[orientation(image)]
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_large(got: str) -> str:
    return f"at most {MAX_IMAGE_PIXELS:,} pixels, got {got}; scale it down first"
