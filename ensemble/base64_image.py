"""Pictures that come as text: clients that speak nothing but JSON can send a file only as base64.

No JPEG, PNG or WebP file consists of printable characters, so text is never mistaken for a file, nor a file for text.
"""

from __future__ import annotations

import base64
import binascii
import re

STARTS = (b"/9j/", b"iVBORw0KGgo", b"UklGR")
"""How the base64 of JPEG, PNG and WebP files begins."""
DATA_URL = re.compile(rb"data:image/[\w.+-]+;base64,", re.IGNORECASE)
LOOKED_AT = 64
"""Bytes that tell text from a file."""
SHOWN = 24
_STANDARD = bytes.maketrans(b"-_", b"+/")  # the alphabet of URLs, in which others send it
_BLANKS = b" \t\r\n"  # the command `base64` breaks its lines


def file_of(image: bytes) -> bytes:
    """The file: `image` itself, or what it stands for where it is base64 text, with or without `data:image/...;base64,`
    before it. Raises ValueError for other text and for base64 that is damaged."""
    start = image[:LOOKED_AT]
    if not start.isascii() or not start.decode().replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return image
    found = DATA_URL.match(image.lstrip(_BLANKS)[:LOOKED_AT])
    text = image.translate(_STANDARD, _BLANKS)[len(found[0].translate(None, _BLANKS)) if found else 0 :]
    if not text.startswith(STARTS):
        raise ValueError(
            f"expected a JPEG, PNG or WebP file or the base64 text of one, got text that starts with"
            f" {start[:SHOWN].decode()!r}; over HTTP a file's own bytes need Triton's binary tensor data extension"
            " (header Inference-Header-Content-Length), JSON alone can carry its base64 text"
        )
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the base64 text cannot be decoded ({error}); send it whole") from None
