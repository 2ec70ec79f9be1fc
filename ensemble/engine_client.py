"""A front model's side of the engine model: frames are made ready for it, and its answers are read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import Any

import numpy as np

from ensemble import handover, triton_io
from ensemble.detector import Prepared
from ensemble.interfaces import ENGINE_MODEL, VIDEO_OUTPUTS, engine
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import attempt, load, plain_jpeg, scaled
from ensemble.spec import Variant

TIMEOUT_S = 900.0
"""An engine model that has not answered a batch by then is stuck; the batch's callers are told instead of waiting
forever. On the CPU, batches of a large checkpoint that wait for each other take minutes."""


class EngineClient:
    """Hands batches of one front model to the engine model. `decoding` "cpu": every frame is decoded and scaled here,
    a frame per thread of `pool`; otherwise plain JPEG files go over as they are, for the GPU."""

    def __init__(self, front: str, variant: Variant, pool: Executor, decoding: str) -> None:
        self._front, self._variant, self._pool, self._files = front, variant, pool, decoding != "cpu"
        self._outputs = [tensor.name for tensor in engine().outputs if tensor.name not in VIDEO_OUTPUTS]
        self._calls = ThreadPoolExecutor(1, "engine")

    def detect(self, batch: list[Prepared]) -> list[Detections | Exception]:
        """The answer to each item of the batch, in order; what is an exception already is its own answer."""
        start = time.perf_counter()
        ready = list(self._pool.map(lambda item: attempt(self._ready, item) if isinstance(item, Job) else item, batch))
        milliseconds = (time.perf_counter() - start) * 1e3
        jobs = [item for item in ready if isinstance(item, Job)]
        if not jobs:
            return ready
        for job in jobs:
            job.add_ms("decode", milliseconds)
        try:
            answers = iter(self._unpack(self._call(self._pack(jobs), self._outputs), jobs))
        except Exception as error:  # the engine model failed: say so to the frames that were in the call, keep serving
            return [error if isinstance(item, Job) else item for item in ready]
        return [next(answers) if isinstance(item, Job) else item for item in ready]

    def _pack(self, jobs: Sequence[Any]) -> dict[str, np.ndarray]:
        return handover.pack_jobs(self._front, jobs, self._variant.resolution)

    def _unpack(self, arrays: dict[str, np.ndarray], jobs: Sequence[Any]) -> list[Detections | Exception]:
        return handover.unpack_answers(arrays, jobs)

    def _ready(self, job: Job) -> Job:
        """The job with its frame as the engine model takes it; `job` keeps the caller's mask format."""
        file = job.request.image
        if self._files and file is not None and (jpeg := plain_jpeg(file)):
            job.frame_size = jpeg.size
            return job
        image = load(job.request)
        job.frame_size = (image.height, image.width)
        job.request = replace(job.request, image=None, frame=scaled(image, self._variant.resolution))
        return job

    def _call(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        call = self._calls.submit(triton_io.call_model, ENGINE_MODEL, inputs, outputs)
        try:
            answered: dict[str, Any] = call.result(TIMEOUT_S)
        except FutureTimeoutError:
            self._calls = ThreadPoolExecutor(1, "engine")  # the other one's thread may wait forever
            raise triton_io.CallError(
                f"{ENGINE_MODEL} has not answered for {TIMEOUT_S:.0f} s; sam3-serve starts a server again that hangs"
            ) from None
        return {name: tensor.as_numpy() for name, tensor in answered.items()}
