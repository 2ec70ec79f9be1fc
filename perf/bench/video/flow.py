"""The server's flow of a video in this process: its sub-models, its bank and its rules, without Triton and without
files to decode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from ensemble.engines import open_sub_model
from ensemble.pipeline import Pipeline
from ensemble.prompts import PromptTokenizer
from ensemble.records import ModelSpec
from ensemble.request import FrameRequest
from ensemble.server.videos import VideoServed
from ensemble.spec import find_engine
from ensemble.tracker_interfaces import CONDITIONING_MAPS
from ensemble.video.arrays import arrays_of
from ensemble.video.bank import Bank
from ensemble.video.pipeline import VideoPipeline
from ensemble.video.request import Asked, Seeds
from ensemble.video.sessions import Sessions
from ensemble.video.sizes import slot_bytes
from ensemble.video.squares import Smaller
from ensemble.video.turns import VideoJob

RARELY = 1000
"""`detect_every`: the detector looks at the first frame alone."""


class Flow:
    """One front model's sub-models on a GPU (`device_id`) or the CPU (None), with room for `slots` objects."""

    def __init__(self, served: VideoServed, slots: int, device_id: int | None) -> None:
        self.variant, tracking = served.variant, served.variant.tracking
        models = {}
        for name, artifact in served.artifacts:
            on_gpu = find_engine(artifact.engine).on_gpu
            models[name] = open_sub_model(artifact.engine, artifact.path, device_id if on_gpu else None)

        def call(model: ModelSpec, inputs, outputs):  # type: ignore[no-untyped-def]
            return models[model.name](inputs, outputs)

        self._slots = slots
        self._bank = Bank(tracking, slots, arrays_of(served.engines["tracker_step"], device_id))
        sessions = Sessions(self.variant.front_name, slots, slot_bytes(tracking))
        smaller = Smaller(tracking.resolution, device_id)
        detector = Pipeline(self.variant.detector, call)
        self.pipeline = VideoPipeline(self.variant, detector, self._bank, sessions, smaller)
        self._tokenizer = PromptTokenizer(served.detector.tokenizer, tracking.checkpoint.context_length)

    def frames(self, pixels: Sequence[np.ndarray], objects: int) -> Iterator[float]:
        """Milliseconds of each frame (uint8 [3,R,R]) of a video with so many objects. From the second frame on each
        remembers as many given masks as it can; the last frames fill up by themselves."""
        size, names = self.variant.tracking.mask_size, names_of(objects)
        seeds = seeded(size, objects)
        for index, frame in enumerate(pixels):
            start = time.perf_counter()
            asked = Asked(1, index == 0, False, RARELY, objects, 1, seeds if index == 0 else None)
            request = FrameRequest(names, frame=frame, mask_format="bits", max_detections=objects)
            job = VideoJob(request, [self._tokenizer(name) for name in names], (size, size), asked=asked)
            (answer,) = self.pipeline.complete(self.pipeline.begin([job], frame[None]))
            if isinstance(answer, Exception):
                raise answer
            yield (time.perf_counter() - start) * 1e3
            if len(answer.track_ids) + len(answer.hidden_ids) < objects:
                raise RuntimeError(f"frame {index}: fewer than {objects} objects are followed")
            if index == 0:
                self._fill(objects)
        self.pipeline.sessions.end(1)

    def _fill(self, objects: int) -> None:
        """The first frame's given masks once more, as if the detector had confirmed them in later ones."""
        session = self.pipeline.sessions.find(1)
        slots = [session.taken[n] for n in sorted(session.taken)]
        assert len(slots) == objects, "all that was asked for has begun"
        told = self._bank.read(slots, [1] * objects)
        rows = list(range(objects))
        for _ in range(CONDITIONING_MAPS - 1):
            self._bank.write(slots, [0] * objects, rows, told.memory[:, 0], told.pointers[:, 0], given=True)


def names_of(objects: int) -> tuple[str, ...]:
    """A class for each object: of one class, those that random weights draw over each other would count as one."""
    return tuple(f"thing {n}" for n in range(objects))


def seeded(size: int, objects: int) -> Seeds:
    """Squares side by side, each of its own class, as masks of that size."""
    side = int(np.ceil(np.sqrt(objects)))
    step = size // side
    masks = np.zeros((objects, size, size), np.uint8)
    for n in range(objects):
        y, x = divmod(n, side)
        masks[n, y * step : y * step + max(1, step - 2), x * step : x * step + max(1, step - 2)] = 1
    numbers = np.arange(objects)
    return Seeds(numbers.astype(np.int64), numbers.astype(np.int32), np.packbits(masks, axis=-1))
