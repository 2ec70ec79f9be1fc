"""Files of every kind a camera or a person sends: pixels where they are pictures, one sentence where they are not."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ensemble.preprocess import cpu
from ensemble.preprocess.cpu import CpuPreprocessor, DevicePreprocessor, decode, plain_jpeg, to_pixel_values
from ensemble.preprocess.resample import resample
from ensemble.request import FrameRequest, RequestError

GRADIENT = np.stack([*np.meshgrid(np.arange(0, 240, 4), np.arange(0, 160, 4)), np.full((40, 60), 90)], -1).astype(
    np.uint8
)


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
    "1 x 40,000": (png_header(1, 40_000), "at most 32,768 pixels a side, got 1x40000"),
    "GIF": (encoded(Image.fromarray(GRADIENT), "GIF"), "expected a JPEG, PNG, WEBP file"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
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


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
PLAIN = {
    "JPEG": (WHOLE, True),
    "4:4:4": (encoded(Image.fromarray(GRADIENT), "JPEG", subsampling=0), True),
    "progressive": (encoded(Image.fromarray(GRADIENT), "JPEG", progressive=True), True),
    "grey": (encoded(Image.fromarray(GRADIENT).convert("L"), "JPEG"), True),
    "padded with zeros": (WHOLE + b"\0" * 40, True),
    "upright by EXIF": (encoded(Image.fromarray(GRADIENT), "JPEG", exif=Image.Exif()), True),
    "truncated": (WHOLE[:-30], False),
    "rotated": (encoded(Image.fromarray(GRADIENT), "JPEG", exif=ROTATED), False),
    "CMYK": (encoded(Image.fromarray(GRADIENT).convert("CMYK"), "JPEG"), False),
    "stored as RGB": (encoded(Image.fromarray(GRADIENT), "JPEG", keep_rgb=True), False),
    "PNG": (encoded(Image.fromarray(GRADIENT)), False),
}


@pytest.mark.parametrize(("data", "plain"), PLAIN.values(), ids=PLAIN)
def test_only_plain_jpegs_are_left_to_other_decoders(data, plain):
    found = plain_jpeg(data)
    assert (found is not None) == plain
    if found is not None:
        assert (found.data, found.size) == (data, (40, 60))


class NumpyDevice:
    """A device on the host: decodes with Pillow, resizes with the reference, and refuses what it is told to."""

    def __init__(self, refuses=()):
        self.refuses, self.files, self.calls = refuses, [], 0

    def decode(self, files):
        self.calls += 1
        self.files += files
        return [None if data in self.refuses else np.asarray(decode(data)) for data in files]

    def resize(self, pictures):
        return np.array([resample(picture, 28).transpose(2, 0, 1) for picture in pictures]).reshape(-1, 3, 28, 28)


ODD = WHOLE + b"\0"
SENT = [
    FrameRequest(("x",), image=WHOLE),
    FrameRequest(("x",), image=WHOLE[:-30]),
    FrameRequest(("x",), frame=GRADIENT[:, ::2]),
    FrameRequest(("x",), image=b"junk"),
    FrameRequest(("x",), image=ODD),
    FrameRequest(("x",), image=PLAIN["PNG"][0]),
    FrameRequest(("x",), image=PLAIN["rotated"][0]),
    FrameRequest(("x",), frame=np.zeros((40_000, 1, 3), np.uint8)),
    FrameRequest(("x",), image=PLAIN["grey"][0]),
]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.mark.parametrize(
    "refuses", [(), (ODD,), (WHOLE, ODD, PLAIN["grey"][0])], ids=["nothing", "one file", "every file"]
)
def test_a_device_gives_what_the_cpu_gives_frame_by_frame(pool, refuses):
    """Bad frames get the same sentence and disturb nobody, whichever files the device refuses."""
    device = NumpyDevice(refuses)
    ours, our_sizes = DevicePreprocessor(device, pool)(SENT)
    theirs, their_sizes = CpuPreprocessor(28, pool)(SENT)
    assert [str(size) for size in our_sizes] == [str(size) for size in their_sizes]
    assert [i for i, size in enumerate(our_sizes) if isinstance(size, RequestError)] == [1, 3, 7]
    assert (our_sizes[0], our_sizes[2], our_sizes[6]) == ((40, 60), (40, 30), (60, 40))
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # Pillow may do the columns of a tall frame first
    assert device.files == [WHOLE, ODD, PLAIN["grey"][0]]
    assert device.calls == 1


@pytest.mark.parametrize(
    ("most", "calls"),
    [
        pytest.param(1 << 20, 1, id="all at once"),
        pytest.param(3 * 40 * 60 * 3, 2, id="three of the largest at a time"),
        pytest.param(1, 3, id="one at a time, which takes more"),
    ],
)
def test_large_pictures_are_read_in_parts(pool, monkeypatch, most, calls):
    """A device has few of them at a time, and the frames are those of one call."""
    whole, device = DevicePreprocessor(NumpyDevice(), pool)(SENT), NumpyDevice()
    monkeypatch.setattr(cpu, "PART_BYTES", most)
    batch, sizes = DevicePreprocessor(device, pool)(SENT)
    np.testing.assert_array_equal(batch, whole[0])
    assert [str(size) for size in sizes] == [str(size) for size in whole[1]]
    assert device.files == [WHOLE, ODD, PLAIN["grey"][0]]
    assert device.calls == calls


def test_no_good_frame_at_all(pool):
    for preprocessor in (CpuPreprocessor(28, pool), DevicePreprocessor(NumpyDevice(), pool)):
        batch, sizes = preprocessor([FrameRequest(("x",), image=b"junk")])
        assert batch.shape == (0, 3, 28, 28)
        assert isinstance(sizes[0], RequestError)
