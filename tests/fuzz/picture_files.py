"""Good picture files of every kind, small and very large, and some that are good and meant to hurt."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from tests.fuzz.files import Maker
from tests.fuzz.parts import PNG, parts

SIZES = ((64, 48), (48, 64), (1, 1), (200, 20), (31, 33), (3, 300), (120, 90))
LARGE = (7000, 7000)
"""Width and height of 49 megapixels, which are still taken."""
LARGE_KINDS = ("JPEG", "progressive", "bilevel", "16 bits", "alpha", "WebP")
SCANS = 2000


def drawn(rng: random.Random, mode: str = "RGB") -> Image.Image:
    """A red disc on grey with some noise."""
    width, height = rng.choice(SIZES)
    noise = bytes(90 + value // 4 for value in rng.randbytes(width * height)) if rng.random() < 0.5 else None
    image = (Image.frombytes("L", (width, height), noise) if noise else Image.new("L", (width, height), 90)).convert(
        "RGB"
    )
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, 3 * width // 4, 3 * height // 4), (220, 40, 40))
    return image.convert(mode)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(rng: random.Random) -> bytes:
    """EXIF data: none, an orientation, a whole camera's, or bytes that are none."""
    tags = Image.Exif()
    tags[0x0112] = rng.choice((0, 1, 3, 6, 8, 9, 65_535))
    if rng.random() < 0.3:
        tags.get_ifd(0x8769)[0x927C] = rng.randbytes(300)
        tags[0x010F], tags[0x9003] = "x" * 500, "0000:00:00"
    data = tags.tobytes()
    noise = bytearray(data)
    for _ in range(5):
        noise[rng.randrange(6, len(noise))] = rng.randrange(256)
    return rng.choice((b"", data, data, bytes(noise), b"Exif\0\0" + rng.randbytes(60)))


def several(rng: random.Random, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A file of several pictures, of which the first one counts."""
    first = drawn(rng, mode)
    others = [first.rotate(30 * i) for i in range(1, rng.choice((2, 4)))]
    return file_of(first, kind, save_all=True, append_images=others, **options)


def jpeg(mode: str) -> Maker:
    def make(rng: random.Random) -> bytes:
        options: dict[str, Any] = {"quality": rng.choice((5, 75, 100)), "progressive": rng.random() < 0.4}
        if rng.random() < 0.3:
            options["restart_marker_rows"] = 1
        if not options["progressive"] and rng.random() < 0.4:  # Pillow has no room for both
            options |= {"icc_profile": rng.randbytes(rng.choice((10, 70_000))), "comment": b"c" * 300}
        return file_of(drawn(rng, mode), "JPEG", exif=exif(rng), **options)

    return make


def png(mode: str) -> Maker:
    def make(rng: random.Random) -> bytes:
        options: dict[str, Any] = {}
        if rng.random() < 0.4:
            text = PngInfo()
            text.add_text("a", "b" * 300, zip=True)
            text.add_itxt("c", "d", "e", "f", zip=True)
            options = {"pnginfo": text, "icc_profile": rng.randbytes(200), "dpi": (72, 72)}
        if mode in ("P", "L", "RGB") and rng.random() < 0.4:
            options["transparency"] = (1, 2, 3) if mode == "RGB" else 3
        return file_of(drawn(rng, mode), "PNG", exif=exif(rng), **options)

    return make


def raw_png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"", woven: int = 0
) -> bytes:
    """A PNG as its specification has it: 16 bits a channel and interlacing, which Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, woven)
    return PNG + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass of an interlaced PNG, and its steps (PNG specification, 8.2)."""


def deep_png(rng: random.Random) -> bytes:
    """16 bits a channel: grey, colour, or either with alpha; perhaps interlaced."""
    width, height = 20, 16
    colour, channels = rng.choice(((0, 1), (2, 3), (4, 2), (6, 4)))
    woven = rng.choice((0, 1))
    rows = b""
    for x, y, across, down in ADAM7 if woven else ((0, 0, 1, 1),):
        for _ in range(y, height, down):
            rows += b"\0" + rng.randbytes(2 * channels * len(range(x, width, across)))
    return raw_png(width, height, 16, colour, rows, woven=woven)


def webp(mode: str, **options: Any) -> Maker:
    return lambda rng: file_of(drawn(rng, mode), "WEBP", exif=exif(rng), quality=rng.choice((1, 90)), **options)


# ---- large, or meant to hurt
@cache
def large(kind: str) -> bytes:
    """Files of `LARGE`, which are small while they are coded."""
    width, height = LARGE
    grey = Image.new("L", LARGE, 90)
    rows = {1: (b"\0" + bytes(-(-width // 8))) * height, 16: (b"\0" + b"\x5a" * (2 * width)) * height}
    turned = Image.Exif()
    turned[0x0112] = 6
    makers: dict[str, Callable[[], bytes]] = {
        "JPEG": lambda: file_of(grey.convert("RGB"), "JPEG", quality=20, exif=turned),
        "progressive": lambda: file_of(grey, "JPEG", quality=20, progressive=True),
        "bilevel": lambda: raw_png(width, height, 1, 0, rows[1]),
        "16 bits": lambda: raw_png(width, height, 16, 0, rows[16]),
        "alpha": lambda: file_of(grey.convert("LA"), "PNG", compress_level=1, exif=turned),
        "WebP": lambda: file_of(grey.convert("RGBA"), "WEBP", lossless=True, quality=0, method=0),
    }
    return makers[kind]()


def many_scans(rng: random.Random) -> bytes:
    """A progressive JPEG of 49 megapixels whose last scan comes again and again: each is a walk over all pixels."""
    data = large("progressive")
    last = [part for part in parts(data) if data[part.start + 1] == 0xDA][-1]
    scan = data[last.start : last.end].removesuffix(b"\xff\xd9")
    times = min(SCANS, (40 << 20) // len(scan))
    return data[: last.start] + scan * times + b"\xff\xd9"


def swelling(rng: random.Random) -> bytes:
    """A PNG whose texts or colour profile become 200 MB once they are unpacked."""
    packed = _zeros(200 << 20)
    kind, head = rng.choice(((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")))
    return raw_png(2, 2, 8, 2, bytes(14), before=chunk(kind, head + packed) * rng.choice((1, 50)))


@cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


@cache
def _long_film() -> bytes:
    still = Image.new("RGB", (3000, 3000), (9, 90, 9))
    return file_of(
        still, "WEBP", save_all=True, append_images=[Image.new("RGB", (3000, 3000), (i, 0, 0)) for i in range(4)]
    )


def claims(rng: random.Random) -> bytes:
    """A small file whose header claims any width and height."""
    width, height = (rng.choice((0, 1, 2, 7000, 16_383, 32_768, 32_769, 65_535, 2**31 - 1, 2**32 - 1)) for _ in "wh")
    rows = bytes(rng.choice((0, 100, 100_000)))
    if rng.random() < 0.4:
        depth, colour = rng.choice(((1, 0), (8, 2), (8, 3), (16, 6), (16, 0)))
        return raw_png(width, height, depth, colour, rows, woven=rng.choice((0, 1)))
    if rng.random() < 0.6:
        data = bytearray(jpeg(rng.choice(("RGB", "L", "CMYK")))(rng))
        frame = next(part for part in parts(bytes(data)) if data[part.start + 1] in (0xC0, 0xC1, 0xC2))
        data[frame.body + 1 : frame.body + 5] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        return bytes(data)
    data = bytearray(webp("RGBA", lossless=rng.random() < 0.5)(rng))
    at = 24 if data[12:16] == b"VP8X" else 21
    data[at : at + 6] = rng.randbytes(6)
    return bytes(data)


def other(kind: str, mode: str = "RGB", **options: Any) -> Maker:
    return lambda rng: file_of(drawn(rng, mode), kind, **options)


def nothing(rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0", bytes(5000), rng.randbytes(3000), b"<svg/>", b"GIF89a", b"\xff\xd8", PNG))


KINDS: dict[str, tuple[str, Maker]] = {
    "JPEG": (".jpg", jpeg("RGB")),
    "grey JPEG": (".jpg", jpeg("L")),
    "CMYK JPEG": (".jpeg", jpeg("CMYK")),
    "JPEG of several": (".jpg", lambda rng: several(rng, "MPO")),
    "PNG": (".png", png("RGB")),
    "grey PNG": (".png", png("L")),
    "palette PNG": (".png", png("P")),
    "bilevel PNG": (".png", png("1")),
    "16-bit PNG": (".png", png("I;16")),
    "PNG of 16 bits a channel": (".png", deep_png),
    "alpha PNG": (".png", png("RGBA")),
    "grey and alpha PNG": (".png", png("LA")),
    "animated PNG": (".png", lambda rng: several(rng, "PNG", rng.choice(("RGB", "RGBA", "P")))),
    "WebP": (".webp", webp("RGB")),
    "lossless WebP": (".webp", webp("RGB", lossless=True)),
    "alpha WebP": (".webp", webp("RGBA")),
    "animated WebP": (".webp", lambda rng: several(rng, "WEBP", rng.choice(("RGB", "RGBA")))),
    "BMP": (".bmp", other("BMP")),
    "palette BMP": (".bmp", other("BMP", "P")),
    "GIF": (".png", lambda rng: several(rng, "GIF")),
    "TIFF": (".jpg", lambda rng: several(rng, "TIFF", compression=rng.choice((None, "tiff_lzw", "jpeg")))),
    "others": (".webp", lambda rng: other(rng.choice(("PPM", "TGA", "PCX", "JPEG2000")))(rng)),
    "nothing": (
        ".jpg",
        nothing,
    ),
    "claims": (".png", claims),
    "large": (".jpg", lambda rng: large(rng.choice(LARGE_KINDS))),
    "many scans": (".jpg", many_scans),
    "swelling PNG": (".png", swelling),
    "long animation": (".webp", lambda rng: _long_film()),
}
WHOLE = dict.fromkeys(("GIF", "TIFF", "others", "nothing", "many scans", "swelling PNG"), "refused") | {"claims": ""}
"""What comes of files of these kinds, even where nothing is wrong with them."""
SLOW = frozenset({"large", "long animation"})
"""Seconds each, on a processor."""
