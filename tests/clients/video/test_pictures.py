"""Picture files: the client sees what the server sees, and one bad photo costs itself alone."""

import asyncio
import io
import json
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from clients import camera
from clients.video.frames import SourceError
from clients.video.reader import Reader
from clients.video.sources import open_source
from ensemble.pictures import MAX_SCANS
from ensemble.preprocess import cpu
from ensemble.request import RequestError
from tests.clients.answering import answering

GRADIENT = np.stack([*np.meshgrid(np.arange(0, 240, 4), np.arange(0, 160, 4)), np.full((40, 60), 90)], -1)
RGB = Image.fromarray(GRADIENT.astype(np.uint8))
DEEP = Image.fromarray(np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16))
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
UNKNOWN = Image.Exif()
UNKNOWN[0x0112] = 99


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = file_of(RGB, "PNG", exif=tags)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(cpu.decode(data)), np.asarray(expected))


def file_of(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(colour, channels):
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    values = np.linspace(0, 65535, 40 * 60 * channels).reshape(40, 60 * channels).astype(">u2")
    return png(60, 40, 16, colour, b"".join(b"\0" + row.tobytes() for row in values))


FILES = {
    "JPEG": (".jpg", file_of(RGB, "JPEG")),
    "CMYK JPEG": (".jpg", file_of(RGB.convert("CMYK"), "JPEG")),
    "grey JPEG": (".jpg", file_of(RGB.convert("L"), "JPEG")),
    "sideways by EXIF": (".jpg", file_of(RGB, "JPEG", exif=SIDEWAYS)),
    "EXIF data that are none": (".jpg", file_of(RGB, "JPEG", exif=b"Exif\0\0none, but noise")),
    "EXIF data that are none, in a PNG": (".png", file_of(RGB, "PNG", exif=b"Exif\0\0none, but noise")),
    "EXIF of an unknown orientation": (".jpg", file_of(RGB, "JPEG", exif=UNKNOWN)),
    "sideways PNG": (".png", file_of(RGB, "PNG", exif=SIDEWAYS)),
    "16-bit grey PNG": (".png", file_of(DEEP, "PNG")),
    "16-bit grey and alpha": (".png", deep_png(4, 2)),
    "16-bit RGB": (".png", deep_png(2, 3)),
    "16-bit RGBA": (".png", deep_png(6, 4)),
    "palette": (".png", file_of(RGB.convert("P"), "PNG")),
    "palette with a transparent colour": (".png", file_of(RGB.convert("P"), "PNG", transparency=3)),
    "bilevel": (".png", file_of(RGB.convert("1"), "PNG")),
    "grey and alpha": (".png", file_of(RGB.convert("LA"), "PNG")),
    "RGBA": (".png", file_of(RGB.convert("RGBA"), "PNG")),
    "WebP with alpha": (".webp", file_of(RGB.convert("RGBA"), "WEBP")),
    "PNG called .jpg": (".jpg", file_of(RGB, "PNG")),
}


@pytest.mark.parametrize("case", FILES)
def test_client_and_server_see_the_same_pixels(case, tmp_path):
    suffix, data = FILES[case]
    (tmp_path / f"a{suffix}").write_bytes(data)
    with open_source(tmp_path / f"a{suffix}") as source:
        (frame,) = source
    np.testing.assert_array_equal(frame.rgb, np.asarray(cpu.decode(data)))
    assert 20 < frame.rgb.mean() < 235


def scans(count):
    """A progressive JPEG whose last scan comes `count` times."""
    data = file_of(RGB, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_scans_behind_a_picture_and_in_its_thumbnail_are_not_its_own(tmp_path):
    """As in a moving photo, behind which lies a film."""
    thumbnail = b"\xff\xe2" + struct.pack(">H", 2 + 2 * MAX_SCANS) + b"\xff\xda" * MAX_SCANS
    data = scans(MAX_SCANS // 2)
    (tmp_path / "a.jpg").write_bytes(data[:2] + thumbnail + data[2:] + b"\xff\xda" * 2 * MAX_SCANS)
    with open_source(tmp_path / "a.jpg") as source:
        (frame,) = source
    assert frame.rgb.shape == (40, 60, 3)


GOOD = file_of(RGB, "JPEG")
BROKEN = bytearray(file_of(Image.effect_noise((400, 400), 60), "PNG"))
_SECOND = BROKEN.index(b"IDAT", BROKEN.index(b"IDAT") + 4)
BROKEN[_SECOND : _SECOND + 4] = bytes(4)
BAD = {
    "cut short": ("3.jpg", GOOD[: len(GOOD) // 2], "cannot be decoded"),
    "a JPEG with a damaged header": (
        "3.jpg",
        GOOD.replace(b"\xff\xc0\0\x11", b"\xff\xc0\0\x09"),
        "begins as a JPEG, but its header cannot be read",
    ),
    "a PNG that ends in its header": ("3.png", BROKEN[:10], "begins as a PNG, but its header cannot be read"),
    "a macOS twin": ("._3.jpg", bytes(20) + b"Mac OS X", "expected a JPEG, PNG, WEBP file"),
    "200 megapixels": ("3.png", png(20_000, 10_000, 8, 2, b"\0"), "at most 50,000,000 pixels"),
    "60 megapixels": ("3.png", png(10_000, 6_000, 8, 2, b"\0"), "at most 50,000,000 pixels"),
    "a line of 40,000": ("3.png", png(40_000, 1, 8, 2, b"\0"), "at most 32,768 pixels a side"),
    "a JPEG of 2,000 scans": ("3.jpg", scans(2000), "at most 50 scans"),
    "a broken chunk": ("3.png", bytes(BROKEN), "cannot be decoded"),
    "empty": ("3.jpg", b"", "got 0 bytes"),
    "a GIF called .png": ("3.png", file_of(RGB, "GIF"), "expected a JPEG, PNG, WEBP file"),
}


@pytest.mark.parametrize("case", BAD)
def test_client_and_server_give_the_same_reason(case, tmp_path):
    name, data, why = BAD[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError) as here, open_source(tmp_path / name) as source:
        list(source)
    with pytest.raises(RequestError) as there:
        cpu.decode(data)
    assert why in str(here.value)
    assert str(there.value).removeprefix("image: ") in str(here.value)


@pytest.mark.parametrize("case", BAD)
def test_one_bad_photo_costs_itself_alone(case, tmp_path, monkeypatch, capsys, detections):
    """Skipped, counted and named; the rest is answered, and the exit status says that something was left out."""
    name, data, why = BAD[case]
    for i in (1, 2, 4, 5):
        (tmp_path / f"{i}.jpg").write_bytes(GOOD)
    (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(camera, "open_pool", lambda _: answering(detections()))
    assert camera.main(["--source", str(tmp_path), "--classes", "x", "red circle", "--output"]) == 1
    account = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (account["frames"], account["failed"], account["skipped"]) == (4, 0, 1)
    (sentence,) = account["skipped_why"]
    assert name in sentence
    assert why in sentence


def test_a_folder_without_a_single_picture_fails(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(b"none")
    with pytest.raises(SourceError, match=r"none of 2 files is a picture: .*0\.jpg"), open_source(tmp_path) as source:
        list(source)


async def test_a_loop_over_a_folder_goes_on_past_its_bad_photo(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for i in (0, 2):
        (tmp_path / f"{i}.jpg").write_bytes(GOOD)
    (tmp_path / "1.jpg").write_bytes(GOOD[:300])
    reader = Reader(str(tmp_path), loop=True).start()
    frames = [await reader.next() for _ in range(7)]
    reader.stop()
    assert all(frame is not None for frame in frames)
    assert reader.skipped.count >= 3
    assert len(reader.skipped.why) == 1
    assert "1.jpg" in caplog.messages[0]
    await asyncio.to_thread(reader.join, 10)
