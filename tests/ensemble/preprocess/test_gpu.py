"""Pre-processing on a GPU: which way a front model takes, and, where there is a GPU, whether its pixels are
Pillow's."""

import io
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ensemble.preprocess.cpu import CpuPreprocessor, DevicePreprocessor
from ensemble.preprocess.gpu import MEAN_LIMIT, GpuDevice, GpuUnavailableError, open_preprocessor
from ensemble.preprocess.resample import resample
from ensemble.request import FrameRequest, RequestError


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def no_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.fixture
def opened(pool, caplog):
    """The preprocessor of a mode at 28, and the log's records: (level, message)."""
    caplog.set_level(logging.INFO, "ensemble.preprocess.gpu")

    def open_mode(mode):
        return open_preprocessor(mode, 28, pool, 0), [(r.levelno, r.getMessage()) for r in caplog.records]

    return open_mode


def test_the_cpu_needs_nothing_and_says_nothing(no_libraries, opened):
    preprocessor, logged = opened("cpu")
    assert isinstance(preprocessor, CpuPreprocessor)
    assert logged == []


def test_without_libraries_auto_takes_the_cpu_with_one_warning(no_libraries, opened):
    preprocessor, logged = opened("auto")
    assert isinstance(preprocessor, CpuPreprocessor)
    ((level, message),) = logged
    assert level == logging.WARNING
    assert "cupy" in message
    assert 'pip install ".[gpu]"' in message


def test_without_libraries_gpu_fails_the_load(no_libraries, opened):
    with pytest.raises(GpuUnavailableError, match=r"cupy.*nvidia-nvimgcodec-cu13"):
        opened("gpu")


def test_unknown_mode(opened):
    with pytest.raises(ValueError, match="preprocess must be one of cpu, gpu, auto, got 'cuda'"):
        opened("cuda")


def picture(width, height, seed=0):
    """Soft shapes and a little noise: what a camera sees rather than what a coder fears."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(soft + random.integers(-4, 5, soft.shape), 0, 255).astype(np.uint8)


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


gpu = pytest.mark.gpu


@pytest.fixture(scope="module")
def device():
    """A GPU at 252, or nothing to test."""
    try:
        return GpuDevice(252)
    except GpuUnavailableError as error:
        pytest.skip(str(error))


@gpu
@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (252, 252), (100, 400), (3, 5), (1, 1), (5000, 7)])
def test_the_kernels_resize_as_the_reference_does(device, width, height):
    frames = [picture(width, height, seed) for seed in range(3)]
    batch = device.resize(frames).get()
    for ours, frame in zip(batch, frames, strict=True):
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), resample(frame, 252))


@gpu
def test_auto_takes_the_gpu_where_there_is_one(device, opened):
    preprocessor, logged = opened("auto")
    assert isinstance(preprocessor, DevicePreprocessor)
    ((level, message),) = logged
    assert level == logging.INFO, "no warning"
    assert "nvImageCodec" in message


@gpu
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"quality": 40}],
    ids=["4:4:4", "4:2:2", "4:2:0", "progressive", "quality 40"],
)
@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1279, 719), (64, 48)])
def test_decoded_pixels_are_pillows(device, pool, width, height, options):
    data = jpeg(picture(width, height), **options)
    (decoded,) = device.decode([data])
    assert decoded is not None
    assert decoded.shape == (height, width, 3)
    requests = [FrameRequest(("x",), image=data)]
    ours, theirs = DevicePreprocessor(device, pool)(requests)[0].get(), CpuPreprocessor(252, pool)(requests)[0]
    assert np.abs(ours.astype(int) - theirs).mean() <= MEAN_LIMIT


@gpu
def test_a_batch_of_everything(device, pool):
    """Files of all kinds, raw frames and broken ones, in one batch: each good one is Pillow's, each bad one gets
    Pillow's sentence."""
    frame, whole = picture(320, 240), jpeg(picture(640, 360, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        whole,
        whole[: len(whole) // 2],
        png(frame),
        jpeg(frame[..., 0]),
        b"junk",
        jpeg(frame, exif=exif),
        whole[:-200] + b"\xff\xd9",
        whole + b"\0" * 10,
    ]
    requests = [*(FrameRequest(("x",), image=data) for data in files), FrameRequest(("x",), frame=frame[:, ::2])]
    ours, our_sizes = DevicePreprocessor(device, pool)(requests)
    theirs, their_sizes = CpuPreprocessor(252, pool)(requests)
    assert [str(size) for size in our_sizes] == [str(size) for size in their_sizes]
    assert [type(size) for size in our_sizes].count(RequestError) == 2
    difference = np.abs(ours.get().astype(int) - theirs).mean(axis=(1, 2, 3))
    cut = 4  # the file whose end was cut out: decoders fill the rest in as they like
    assert (np.delete(difference, cut) <= MEAN_LIMIT).all(), difference
