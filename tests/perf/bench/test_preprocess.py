"""The comparison of both ways of pre-processing, on a stand-in device: its frames are what their names say, and what
must not be is told."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ensemble.preprocess.cpu import decode, plain_jpeg
from ensemble.preprocess.resample import resample
from perf.bench import preprocess


class Batch(np.ndarray):
    """NumPy's array with CuPy's way to the host."""

    def get(self):
        return np.asarray(self)


class Device:
    """Pillow's pixels, `brighter` by so many grey levels; refuses progressive files where it is told to."""

    def __init__(self, resolution, brighter=0, refuses_progressive=False):
        self.resolution, self.brighter, self.refuses = resolution, brighter, refuses_progressive

    def decode(self, files):
        return [
            None if self.refuses and "progressive" in Image.open(io.BytesIO(f)).info else np.asarray(decode(f))
            for f in files
        ]

    def resize(self, pictures):
        squares = np.stack([resample(picture, self.resolution).transpose(2, 0, 1) for picture in pictures])
        return np.clip(squares.astype(int) + self.brighter, 0, 255).astype(np.uint8).view(Batch)


@pytest.mark.parametrize("case", preprocess.CASES)
def test_frames_are_what_their_case_says(case):
    width, height, options = preprocess.CASES[case]
    requests = preprocess.frames(width, height, options, count=1)
    if options is None:
        assert requests[0].frame.shape == (height, width, 3)
    else:
        assert plain_jpeg(requests[0].image).size == (height, width)


def rows(monkeypatch, **device):
    monkeypatch.setattr(preprocess, "BATCH", 2)
    monkeypatch.setattr(preprocess, "CASES", {"small": (96, 64, {"progressive": True}), "raw": (96, 64, None)})
    monkeypatch.setattr(preprocess.frames, "__defaults__", (2,))
    with ThreadPoolExecutor(2) as pool:
        return preprocess.measure(28, 1, pool, lambda resolution, hardware: Device(resolution, **device))


def test_equal_pixels_pass(monkeypatch):
    found = rows(monkeypatch)
    assert [(row["case"], row["decoder"], row["decoded"]) for row in found] == [
        ("small", "JPEG engines", 2),
        ("small", "CUDA cores", 2),
        ("raw", "none", 0),
    ]
    assert all(row["mean"] == row["max"] == 0 for row in found)
    assert preprocess.failures(found) == []


def test_other_pixels_fail(monkeypatch):
    found = rows(monkeypatch, brighter=3)
    assert all(1 < row["mean"] <= 3 for row in found)
    assert len(preprocess.failures(found)) == 3
    assert "expected at most 1.0 grey levels on average" in preprocess.failures(found)[0]


def test_pillow_in_the_place_of_the_gpu_fails(monkeypatch):
    sentences = preprocess.failures(rows(monkeypatch, refuses_progressive=True))
    assert len(sentences) == 2
    assert "expected 2 files decoded on the GPU, got 0" in sentences[0]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    assert preprocess.main(["--resolution", "28"]) == 2
    assert "nvidia-nvimgcodec-cu13" in capsys.readouterr().err
