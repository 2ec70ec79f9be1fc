"""Drawn films, and the video flow in this process on the real sub-models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from PIL import Image

from ensemble.engines import open_sub_model
from ensemble.pipeline import Pipeline
from ensemble.preprocess.cpu import to_pixel_values
from ensemble.prompts import PromptTokenizer
from ensemble.request import FrameRequest
from ensemble.server import repository
from ensemble.video.bank import Bank
from ensemble.video.pipeline import VideoPipeline
from ensemble.video.request import Asked
from ensemble.video.sessions import Sessions
from ensemble.video.sizes import slot_bytes
from ensemble.video.squares import Smaller
from ensemble.video.turns import VideoJob
from ensemble.video.variant import VideoVariant
from export.tiny.video.evaluate import Video, held_out_video

SLOTS = 40


@pytest.fixture(scope="session")
def film() -> Callable[[int], Video]:
    """A drawn film of a number, of ten frames."""
    return cache(lambda number: held_out_video(number, 10))


def names_of(video: Video) -> tuple[str, ...]:
    return tuple(dict.fromkeys(video.names))[:3]


@dataclass
class Flow:
    """The flow of one server, and the files that it is made of."""

    pipeline: VideoPipeline
    tokenizer: PromptTokenizer

    def job(self, video: Video, index: int, session: int, **asked) -> VideoJob:
        names = names_of(video)
        request = FrameRequest(names, frame=video.frames[index], mask_format="bits", threshold=0.5)
        told = Asked(session, start=index == 0, max_objects=8, **asked)
        return VideoJob(request, [self.tokenizer(name) for name in names], video.frames[index].shape[:2], asked=told)

    def answer(self, jobs: Sequence[VideoJob]):
        side = self.pipeline.variant.detector.resolution
        pixels = np.stack([to_pixel_values(Image.fromarray(job.request.frame), side) for job in jobs])
        return self.pipeline.complete(self.pipeline.begin(jobs, pixels))


@pytest.fixture(scope="session")
def opened(video_repository):
    """The served variant, its sub-models as functions, opened once, and the tokenizer."""
    (one,) = repository.read(video_repository)
    models = dict(zip((m.name for m in one.variant.sub_models), one.artifacts, strict=True))
    models |= {artifact.model: artifact for artifact in one.tracker}
    runs = {name: open_sub_model("onnxruntime", artifact.path, None) for name, artifact in models.items()}
    return one.variant, runs, PromptTokenizer(one.tokenizer, one.variant.checkpoint.context_length)


@pytest.fixture(scope="session")
def flow(opened) -> Callable[..., Flow]:
    """Another server's flow; `before(part)` is called before each call of a sub-model, `clock` is its sessions'."""

    def make(before: Callable[[str], None] = lambda part: None, clock: Callable[[], float] = time.monotonic) -> Flow:
        variant, runs, tokenizer = opened

        def call(model, inputs, outputs):
            before(model.part)
            return runs[model.name](inputs, outputs)

        video = VideoVariant(variant, variant)
        sessions = Sessions(video.front_name, SLOTS, slot_bytes(variant), clock=clock)
        smaller = Smaller(variant.resolution, None)
        return Flow(VideoPipeline(video, Pipeline(variant, call), Bank(variant, SLOTS), sessions, smaller), tokenizer)

    return make
