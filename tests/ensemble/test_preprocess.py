"""Files of every kind a camera or a person sends: pixels where they are pictures, one sentence where they are not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ensemble.preprocess import decode, to_pixel_values
from ensemble.request import RequestError

GRADIENT = np.stack([*np.meshgrid(np.arange(0, 240, 4), np.arange(0, 160, 4)), np.full((40, 60), 90)], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_come_back_exactly(kind):
    data = encoded(Image.fromarray(GRADIENT), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(np.asarray(decode(data)), GRADIENT)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(GRADIENT).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    got = np.asarray(decode(encoded(image, kind)))
    assert got.shape == (40, 60, 3)
    tolerance = 12 if mode == "CMYK" else 0  # JPEG
    assert np.abs(got.astype(int) - np.asarray(image.convert("RGB")).astype(int)).mean() <= tolerance


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)
    got = np.asarray(decode(encoded(Image.fromarray(values))))
    np.testing.assert_array_equal(got[..., 0], values >> 8)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn 90 degrees clockwise
    got = decode(encoded(Image.fromarray(GRADIENT), "JPEG", quality=95, exif=exif))
    assert got.size == (40, 60)
    turned = np.rot90(GRADIENT, -1)
    assert np.abs(np.asarray(got).astype(int) - turned.astype(int)).mean() < 6


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


WHOLE = encoded(Image.fromarray(GRADIENT), "JPEG")
BROKEN = {
    "text": (b"this is not a picture", "expected a JPEG, PNG, WEBP file, got 21 bytes"),
    "one byte": (b"\xff", "expected a JPEG, PNG, WEBP file, got 1 bytes"),
    "truncated JPEG": (WHOLE[: len(WHOLE) // 2], "cannot be decoded"),
    "truncated PNG": (encoded(Image.fromarray(GRADIENT))[:60], "cannot be decoded"),
    "0x0": (png_header(0, 0), "image: "),
    "40,000 x 40,000": (png_header(40_000, 40_000), "at most 50,000,000 pixels"),
    "8,000 x 8,000": (png_header(8_000, 8_000), "at most 50,000,000 pixels"),
    "GIF": (encoded(Image.fromarray(GRADIENT), "GIF"), "expected a JPEG, PNG, WEBP file"),
}


@pytest.mark.parametrize(("data", "sentence"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_picture_gets_one_sentence(data, sentence):
    with pytest.raises(RequestError, match=sentence) as caught:
        decode(data)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("size", [(1920, 1080), (252, 252), (100, 400)])
def test_pixel_values_match_torchvisions_antialiased_resize(size):
    torch = pytest.importorskip("torch")
    from torchvision.transforms.v2 import functional

    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ours = to_pixel_values(Image.fromarray(pixels), 252)
    theirs = functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [252, 252], antialias=True).numpy()
    assert ours.shape == (3, 252, 252)
    assert ours.flags.c_contiguous
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
