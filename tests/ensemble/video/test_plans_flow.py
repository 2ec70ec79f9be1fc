"""The video flow as plans serve it: arrays on a GPU that is stood in for, which are touched where the plans' stream is
and never read as NumPy's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ensemble.pipeline import Pipeline
from ensemble.video.arrays import arrays_of
from ensemble.video.bank import Bank
from ensemble.video.pipeline import VideoPipeline
from ensemble.video.sessions import Sessions
from ensemble.video.sizes import slot_bytes
from ensemble.video.squares import Smaller
from ensemble.video.variant import VideoVariant
from tests.ensemble.video.conftest import SLOTS, Flow
from tests.ensemble.video.test_pipeline import same


class Gpu:
    """Whether a block of `working` runs."""

    def __init__(self) -> None:
        self.busy = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def array(self, host: np.ndarray) -> OnGpu:
        return OnGpu(host, self)


class OnGpu:
    """What the flow may do with a CuPy array: index it, write to it and copy it, on the plans' stream."""

    def __init__(self, host: np.ndarray, gpu: Gpu) -> None:
        self.host, self._gpu = np.array(host), gpu

    def __array__(self, *_: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def _touched(self, key: Any) -> Any:
        assert self._gpu.busy, "touched where the plans' stream is not"
        return key.host if isinstance(key, OnGpu) else key

    def __getitem__(self, key: Any) -> OnGpu:
        return OnGpu(self.host[self._touched(key)], self._gpu)

    def __setitem__(self, key: Any, value: OnGpu) -> None:
        self.host[self._touched(key)] = value.host

    def copy(self) -> OnGpu:
        return OnGpu(self.host, self._touched(self._gpu))


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    """`cupy`, and the GPU that plans share."""
    own = Gpu()
    cupy = SimpleNamespace(
        zeros=lambda shape, dtype: own.array(np.zeros(shape, dtype)),
        asarray=own.array,
        asnumpy=lambda array: array.host,
    )
    shared = SimpleNamespace(shared_gpu=lambda device_id: own)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "ensemble.engines.plans.gpu", shared)
    return own


def test_videos_are_the_same_where_arrays_stay_on_a_gpu(opened, flow, film, gpu):
    """With two objects in one call of the tracker at most, so that a call's outputs are kept beside the next one's."""
    variant, runs, tokenizer = opened
    called: dict[str, int] = {}

    def call(model, inputs, outputs):
        called[model.part] = called.get(model.part, 0) + 1
        given = {name: value.host if isinstance(value, OnGpu) else value for name, value in inputs.items()}
        made = runs[model.name](given, outputs)
        return {n: value if model.output(n).host else gpu.array(value) for n, value in made.items()}

    video, sessions = VideoVariant(variant, variant), Sessions("sam3_video_r140", SLOTS, slot_bytes(variant))
    bank = Bank(variant, SLOTS, arrays_of("tensorrt_rtx", 0))
    smaller = Smaller(variant.resolution, None)
    own = Flow(VideoPipeline(video, Pipeline(variant, call), bank, sessions, smaller), tokenizer)
    own.pipeline._objects.most = 2
    plain = flow()
    for index in range(4):
        frames = [[each.job(film(3), index, 7)] for each in (own, plain)]
        (mine,), (its,) = own.answer(frames[0]), plain.answer(frames[1])
        same(mine, its)
    assert len(mine.track_ids) >= 2
    assert {"tracker_step", "memory_encoder", "tracker_seed"} <= called.keys()
    assert called["tracker_step"] >= 3
    assert not gpu.busy
